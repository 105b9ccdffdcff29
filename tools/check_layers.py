#!/usr/bin/env python3
"""Holds the includes of lib/ and apps/ against the architecture, which is the list of rooms in lib/CMakeLists.txt.

Checked: a room includes "weightcast/ROOM/..." of exactly the rooms in its USES, no more and no less; USES only point up
the list (so there are no cycles); every folder of lib/weightcast is a room of the list; no room is called util, common,
helper or misc; a program (a folder of apps/) includes exactly the rooms that it links, and has no file named like a
room; no header includes CUDA or NCCL; MPI is included only by the room comm and by the sources of transport, and its
names stand in no other file but one of room snapshot, which hands them to HDF5 (programs in C are callers of the library
and do as they like); no file is longer than 350 lines. Prints file:line of each violation and exits with 1, or exits with 0.

Usage: check_layers.py [--root DIR] | --self-test
"""

import argparse
import pathlib
import re
import sys
import tempfile

LINE_LIMIT = 350
BANNED_NAMES = {"util", "utils", "common", "helper", "helpers", "misc"}
SUFFIXES = {".hpp", ".cpp", ".cu", ".cuh", ".h", ".c"}
KEYWORDS = {"USES", "LINKS", "PRIVATE_LINKS", "CUDA_LINKS"}
ROOM = re.compile(r"^[ \t]*weightcast_room\(([^)]*)\)", re.MULTILINE)
INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]')
CUDA = re.compile(r"^(cuda|cu[A-Z_]|cub/|thrust/|cooperative_groups|nccl|nvml|nvtx3/|driver_types)")
MPI = re.compile(r"^(openmpi/)?(mpi|mpi-ext|mpi_portable_platform)\.h$")
MPI_NAME = re.compile(r"\bMPI_\w+")
MPI_ROOMS = {"comm", "transport"}
MPI_FOR_HDF5 = "lib/weightcast/snapshot/snapshot_writer.cpp"  # opens a file of all ranks
NOT_CODE = re.compile(r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])'", re.DOTALL)
LINKED = re.compile(r"\bweightcast::(\w+)")


def read_rooms(root, problems):
    """Rooms in the order of the list, each with its line and the rooms that it USES."""
    path = root / "lib/CMakeLists.txt"
    text = path.read_text()
    rooms = {}
    for match in ROOM.finditer(text):
        where = f"lib/CMakeLists.txt:{text.count(chr(10), 0, match.start()) + 1}"
        name, *words = match.group(1).split()
        if name in BANNED_NAMES:
            problems.append(f"{where}: a room called {name} says nothing about what is in it")
        if name in rooms:
            problems.append(f"{where}: room {name} is listed twice")
        uses, keyword = set(), None
        for word in words:
            if word in KEYWORDS:
                keyword = word
            elif keyword == "USES":
                if word not in rooms:
                    problems.append(f"{where}: {name} uses {word}, which is not above it in the list "
                                    "(a cycle, a wrong order or an unknown room)")
                uses.add(word)
        rooms[name] = (where, uses)
    if not rooms:
        problems.append("lib/CMakeLists.txt: no weightcast_room() found")
    return rooms


def check_foreign_include(name, path, where, room, problems):
    """An include of CUDA, NCCL or MPI by a file of `room`, or of a program when that is None."""
    is_header = path.suffix in {".hpp", ".h", ".cuh"}
    if CUDA.match(name) and is_header and "backend_cuda" not in str(path):
        problems.append(f"{where}: a header includes {name}; CUDA and NCCL belong into sources and backend_cuda")
    elif MPI.match(name) and path.suffix != ".c" and room != "comm" and (room != "transport" or is_header):
        problems.append(f"{where}: includes {name}; MPI belongs into comm and the sources of transport")


def check_file(path, room, root, problems):
    """Checks a file by itself; the rooms that it includes, each with the first place."""
    relative = path.relative_to(root)
    text = path.read_text(errors="replace")
    lines = text.splitlines()
    if len(lines) > LINE_LIMIT:
        problems.append(f"{relative}:{len(lines)}: longer than {LINE_LIMIT} lines")
    included = {}
    for number, line in enumerate(lines, 1):
        if found := INCLUDE.match(line):
            name, where = found.group(1), f"{relative}:{number}"
            if name.startswith("weightcast/"):
                included.setdefault(name.split("/")[1], f"{where}: includes {name}")
            check_foreign_include(name, path, where, room, problems)
    if room not in MPI_ROOMS and path.suffix != ".c" and str(relative) != MPI_FOR_HDF5:
        code = NOT_CODE.sub(lambda match: "\n" * match.group().count("\n"), text)
        for number, line in enumerate(code.splitlines(), 1):
            if found := MPI_NAME.search(line):
                problems.append(f"{relative}:{number}: {found.group()} outside of comm and transport")
    return included


def check_edges(included, used, where, what, rooms, problems):
    """Holds what `what` includes against what it says that it uses in the line `where`."""
    for target, place in included.items():
        if target not in rooms:
            problems.append(f"{place} of an unknown room")
        elif target not in used:
            problems.append(f"{place}, but {what} does not use {target}")
    for target in sorted(used - set(included)):
        problems.append(f"{where}: {what} uses {target}, but includes nothing of it")


def check(root):
    """All violations below `root`, as lines of text."""
    problems = []
    rooms = read_rooms(root, problems)

    def files_of(folder):
        return sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES)

    for folder in sorted((root / "lib/weightcast").iterdir()):
        if folder.is_file() and folder.suffix in SUFFIXES:
            problems.append(f"{folder.relative_to(root)}: outside of every room")
        if not folder.is_dir():
            continue
        name, included = folder.name, {}
        for path in files_of(folder):
            included = {**check_file(path, name, root, problems), **included}
        included.pop(name, None)
        if name not in rooms:
            problems.append(f"lib/weightcast/{name}: not a room of lib/CMakeLists.txt")
        else:
            check_edges(included, rooms[name][1], rooms[name][0], name, rooms, problems)
    for folder in sorted(path for path in (root / "apps").iterdir() if path.is_dir()):
        included = {}
        for path in files_of(folder):
            if path.stem in rooms:
                problems.append(f"{path.relative_to(root)}: named like the room {path.stem}")
            included = {**check_file(path, None, root, problems), **included}
        listing = folder / "CMakeLists.txt"
        linked = set(LINKED.findall(listing.read_text())) & set(rooms) if listing.exists() else set()
        check_edges(included, linked, listing.relative_to(root), folder.name, rooms, problems)
    return problems


GOOD = {
    "lib/CMakeLists.txt": "weightcast_room(core LINKS fmt::fmt)\nweightcast_room(tensor USES core)\n"
                          "weightcast_room(comm USES core LINKS MPI::MPI_CXX)\n"
                          "weightcast_room(transport USES core comm\n  PRIVATE_LINKS x::y)\n"
                          "weightcast_room(capi USES transport)\n",
    "lib/weightcast/core/error.hpp": "#include <string>\n",
    "lib/weightcast/tensor/dtype.hpp": '#include "weightcast/core/error.hpp"\n',
    "lib/weightcast/tensor/dtype.cpp": '// MPI_Send() is not called here,\n/* nor\nMPI_Recv() */ auto a = "MPI_Test";\n',
    "lib/weightcast/comm/communicator.hpp": '#include <mpi.h>\n#include "weightcast/core/error.hpp"\nMPI_Comm c;\n',
    "lib/weightcast/transport/direct.hpp": '#include "weightcast/comm/communicator.hpp"\nMPI_Request request;\n',
    "lib/weightcast/transport/direct.cpp": '#include <mpi.h>\n#include <cuda_runtime.h>\n'
                                           '#include "weightcast/core/error.hpp"\n',
    "lib/weightcast/capi/weightcast.h": '#include "weightcast/transport/direct.hpp"\n',
    "apps/weightcast/CMakeLists.txt": "target_link_libraries(weightcast PUBLIC weightcast::core weightcast::options)\n",
    "apps/weightcast/options/main.cpp": '#include "weightcast/core/error.hpp"\nint main() {}\n',
    "apps/example/CMakeLists.txt": "target_link_libraries(example PUBLIC weightcast::capi)\n",
    "apps/example/main.c": '#include <mpi.h>\n#include "weightcast/capi/weightcast.h"\nint a = MPI_SUCCESS;\n',
}
LIST = GOOD["lib/CMakeLists.txt"]
# What is changed in the good tree, and what the message about it must contain.
BAD = [
    ({"lib/weightcast/core/error.hpp": '\n#include "weightcast/tensor/dtype.hpp"\n'},
     "core/error.hpp:2: includes weightcast/tensor/dtype.hpp, but core does not use tensor"),
    ({"lib/weightcast/tensor/dtype.hpp": '# include "weightcast/comm/communicator.hpp"\n'}, "tensor does not use comm"),
    ({"lib/CMakeLists.txt": LIST.replace("core comm", "comm")}, "but transport does not use core"),
    ({"lib/CMakeLists.txt": LIST.replace("core comm", "core tensor comm")},
     "lib/CMakeLists.txt:4: transport uses tensor, but includes nothing of it"),
    ({"lib/weightcast/tensor/dtype.hpp": '#include "weightcast/attic/old.hpp"\n'}, "unknown room"),
    ({"lib/weightcast/attic/old.hpp": ""}, "lib/weightcast/attic: not a room"),
    ({"lib/weightcast/stray.hpp": ""}, "outside of every room"),
    ({"lib/weightcast/capi/weightcast.h": '#include "weightcast/tensor/dtype.hpp"\n'},
     "weightcast.h:1: includes weightcast/tensor/dtype.hpp, but capi does not use tensor"),
    ({"lib/CMakeLists.txt": "weightcast_room(core USES transport)\n" + LIST.split("\n", 1)[1]},
     "core uses transport, which is not above it"),
    ({"lib/CMakeLists.txt": LIST + "weightcast_room(core)\n"}, "listed twice"),
    ({"lib/CMakeLists.txt": LIST + "weightcast_room(util)\n"}, "room called util"),
    ({"lib/CMakeLists.txt": ""}, "no weightcast_room() found"),
    ({"lib/weightcast/transport/direct.hpp": "#include <cuda_runtime.h>\n"}, "CUDA and NCCL"),
    ({"lib/weightcast/transport/direct.hpp": "#include <nccl.h>\n"}, "CUDA and NCCL"),
    ({"lib/weightcast/transport/direct.hpp": "#include <mpi.h>\n"}, "MPI belongs"),
    ({"lib/weightcast/tensor/dtype.cpp": '#include "mpi.h"\n'}, "MPI belongs"),
    ({"lib/weightcast/tensor/dtype.cpp": 'auto text = "a"; // b\nMPI_Barrier(world);\n'},
     "tensor/dtype.cpp:2: MPI_Barrier outside"),
    ({"lib/weightcast/capi/weightcast.h": '#include "weightcast/transport/direct.hpp"\nMPI_Comm comm;\n'},
     "weightcast.h:2: MPI_Comm outside"),
    ({"apps/weightcast/options/main.cpp": '#include <mpi.h>\n'}, "main.cpp:1: includes mpi.h"),
    ({"apps/weightcast/options/main.cpp": 'int main() { MPI_Finalize(); }\n'}, "main.cpp:1: MPI_Finalize outside"),
    ({"apps/weightcast/options/main.cpp": '#include "weightcast/comm/communicator.hpp"\n'},
     "main.cpp:1: includes weightcast/comm/communicator.hpp, but weightcast does not use comm"),
    ({"apps/weightcast/CMakeLists.txt": "target_link_libraries(weightcast PUBLIC weightcast::core weightcast::comm)\n"},
     "apps/weightcast/CMakeLists.txt: weightcast uses comm, but includes nothing of it"),
    ({"apps/weightcast/options/transport.hpp": ""}, "options/transport.hpp: named like the room transport"),
    ({"lib/weightcast/core/error.cpp": "\n" * (LINE_LIMIT + 1)}, "error.cpp:351: longer"),
    ({"apps/weightcast/options/main.cpp": "\n" * (LINE_LIMIT + 1)}, "main.cpp:351: longer"),
]


def self_test():
    """Breaks a good tree in every way that check() must notice; returns what it did not."""
    failures = []
    for changes, expected in [({}, None), *BAD]:
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            for name, text in {**GOOD, **changes}.items():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_text(text)
            problems = check(root)
        if expected is None and problems:
            failures.append(f"the good tree is refused: {problems}")
        if expected is not None and not any(expected in problem for problem in problems):
            failures.append(f"not noticed: {expected!r}; noticed: {problems}")
    return failures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parent.parent)
    parser.add_argument("--self-test", action="store_true", help="show that every check can fail")
    arguments = parser.parse_args()
    problems = self_test() if arguments.self_test else check(arguments.root)
    print("\n".join(problems) if problems else f"{len(BAD)} violations noticed" if arguments.self_test else "in order")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
