#!/usr/bin/env python3
"""Holds the includes of lib/ against the architecture, which is the list of rooms in lib/CMakeLists.txt.

Checked: every include of "weightcast/ROOM/..." is reachable through USES; USES only point up the list (so there are no
cycles); every folder of lib/weightcast is a room of the list; no room is called util, common, helper or misc; no header
includes CUDA or NCCL; MPI is included only by the room comm and by the sources of transport; no file of lib or apps is
longer than 350 lines. Prints file:line of each violation and exits with 1, or exits with 0.

Usage: check_layers.py [--root DIR] | --self-test
"""

import argparse
import pathlib
import re
import sys
import tempfile

LINE_LIMIT = 350
BANNED_NAMES = {"util", "utils", "common", "helper", "helpers", "misc"}
SUFFIXES = {".hpp", ".cpp", ".cu", ".cuh"}
KEYWORDS = {"USES", "LINKS", "PRIVATE_LINKS", "CUDA_LINKS"}
ROOM = re.compile(r"^[ \t]*weightcast_room\(([^)]*)\)", re.MULTILINE)
INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]')
CUDA = re.compile(r"^(cuda|cu[A-Z_]|cub/|thrust/|cooperative_groups|nccl|nvml|nvtx3/|driver_types)")
MPI = re.compile(r"^(openmpi/)?(mpi|mpi-ext|mpi_portable_platform)\.h$")


def read_rooms(root, problems):
    """Rooms in the order of the list, each with the set of rooms that it may include (itself, and USES transitively)."""
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
        reach, keyword = {name}, None
        for word in words:
            if word in KEYWORDS:
                keyword = word
            elif keyword == "USES":
                if word not in rooms:
                    problems.append(f"{where}: {name} uses {word}, which is not above it in the list "
                                    "(a cycle, a wrong order or an unknown room)")
                reach |= rooms.get(word, set())
        rooms[name] = reach
    if not rooms:
        problems.append("lib/CMakeLists.txt: no weightcast_room() found")
    return rooms


def check_include(name, where, room, is_header, rooms, problems):
    if name.startswith("weightcast/"):
        target = name.split("/")[1]
        if target not in rooms:
            problems.append(f"{where}: includes {name} of an unknown room")
        elif target not in rooms.get(room, {room}):
            problems.append(f"{where}: {room} includes {name}, but does not use {target}")
    elif CUDA.match(name) and is_header and "backend_cuda" not in str(where):
        problems.append(f"{where}: a header includes {name}; CUDA and NCCL belong into sources and backend_cuda")
    elif MPI.match(name) and room != "comm" and (room != "transport" or is_header):
        problems.append(f"{where}: includes {name}; MPI belongs into comm and the sources of transport")


def check(root):
    """All violations below `root`, as lines of text."""
    problems = []
    rooms = read_rooms(root, problems)
    for folder in sorted(path for path in (root / "lib/weightcast").iterdir() if path.is_dir()):
        if folder.name not in rooms:
            problems.append(f"lib/weightcast/{folder.name}: not a room of lib/CMakeLists.txt")
    for top in ("lib", "apps"):
        for path in sorted(path for path in (root / top).rglob("*") if path.suffix in SUFFIXES):
            relative = path.relative_to(root)
            lines = path.read_text(errors="replace").splitlines()
            if len(lines) > LINE_LIMIT:
                problems.append(f"{relative}:{len(lines)}: longer than {LINE_LIMIT} lines")
            if top == "apps":
                continue
            if len(relative.parts) < 4:
                problems.append(f"{relative}: outside of every room")
                continue
            for number, line in enumerate(lines, 1):
                if found := INCLUDE.match(line):
                    is_header = path.suffix == ".hpp"
                    check_include(found.group(1), f"{relative}:{number}", relative.parts[2], is_header, rooms, problems)
    return problems


GOOD = {
    "lib/CMakeLists.txt": "weightcast_room(core LINKS fmt::fmt)\nweightcast_room(tensor USES core)\n"
                          "weightcast_room(comm USES core LINKS MPI::MPI_CXX)\n"
                          "weightcast_room(transport USES comm tensor\n  PRIVATE_LINKS x::y)\n",
    "lib/weightcast/core/error.hpp": "#include <string>\n",
    "lib/weightcast/tensor/dtype.hpp": '#include "weightcast/core/error.hpp"\n',
    "lib/weightcast/comm/communicator.hpp": "#include <mpi.h>\n",
    "lib/weightcast/transport/direct.cpp": '#include <mpi.h>\n#include <cuda_runtime.h>\n'
                                           '#include "weightcast/core/error.hpp"\n',
    "apps/weightcast/main.cpp": "int main() {}\n",
}
# What is changed in the good tree, and what the message about it must contain.
BAD = [
    ({"lib/weightcast/core/error.hpp": '\n#include "weightcast/tensor/dtype.hpp"\n'}, "core/error.hpp:2: core includes"),
    ({"lib/weightcast/tensor/dtype.hpp": '# include "weightcast/comm/communicator.hpp"\n'}, "does not use comm"),
    ({"lib/weightcast/tensor/dtype.hpp": '#include "weightcast/attic/old.hpp"\n'}, "unknown room"),
    ({"lib/weightcast/attic/old.hpp": ""}, "lib/weightcast/attic: not a room"),
    ({"lib/weightcast/stray.hpp": ""}, "outside of every room"),
    ({"lib/CMakeLists.txt": "weightcast_room(core USES transport)\n" + GOOD["lib/CMakeLists.txt"].split("\n", 1)[1]},
     "core uses transport, which is not above it"),
    ({"lib/CMakeLists.txt": GOOD["lib/CMakeLists.txt"] + "weightcast_room(core)\n"}, "listed twice"),
    ({"lib/CMakeLists.txt": GOOD["lib/CMakeLists.txt"] + "weightcast_room(util)\n"}, "room called util"),
    ({"lib/CMakeLists.txt": ""}, "no weightcast_room() found"),
    ({"lib/weightcast/transport/direct.hpp": "#include <cuda_runtime.h>\n"}, "CUDA and NCCL"),
    ({"lib/weightcast/transport/direct.hpp": "#include <nccl.h>\n"}, "CUDA and NCCL"),
    ({"lib/weightcast/transport/direct.hpp": "#include <mpi.h>\n"}, "MPI belongs"),
    ({"lib/weightcast/tensor/dtype.cpp": '#include "mpi.h"\n'}, "MPI belongs"),
    ({"lib/weightcast/core/error.cpp": "\n" * (LINE_LIMIT + 1)}, "error.cpp:351: longer"),
    ({"apps/weightcast/main.cpp": "\n" * (LINE_LIMIT + 1)}, "main.cpp:351: longer"),
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
