#!/usr/bin/env python3
"""`cmake --install` into an empty prefix, which is then moved elsewhere; what is in it must work from there.

usage: install_test.py BUILD CMAKE GENERATOR COMPILER MPIEXEC FLAGS
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
BUILD, CMAKE, GENERATOR, COMPILER, MPIEXEC, FLAGS = sys.argv[1:7] if len(sys.argv) >= 7 else [""] * 6


def run(*command, **keywords):
    done = subprocess.run([str(part) for part in command], text=True, timeout=240, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, check=False, **keywords)
    assert done.returncode == 0, f"{command}: exit status {done.returncode}\n{done.stdout}"
    return done.stdout


class Installed(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.mkdtemp(prefix="weightcast-install-")
        first = os.path.join(cls.folder, "first")
        run(CMAKE, "--install", BUILD, "--prefix", first)
        cls.prefix = os.path.join(cls.folder, "moved to here")
        os.rename(first, cls.prefix)
        cls.version = re.search(r"(?m)^weightcast (\S+)$", cls.program("--version")).group(1)

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.folder)

    @classmethod
    def path(cls, *parts):
        return os.path.join(cls.prefix, *parts)

    @classmethod
    def program(cls, *arguments):
        return run(cls.path("bin", "weightcast"), *arguments)

    def configure(self, source, build, *options):
        return run(CMAKE, "-S", source, "-B", build, "-G", GENERATOR, f"-DCMAKE_CXX_COMPILER={COMPILER}", f"-DCMAKE_CXX_FLAGS={FLAGS}",
                   f"-DCMAKE_C_FLAGS={FLAGS}", "-DCMAKE_BUILD_TYPE=Release", f"-DCMAKE_PREFIX_PATH={self.prefix}", *options)

    def test_a_project_with_find_package(self):
        build = os.path.join(self.folder, "consumer")
        self.configure(os.path.join(HERE, "consumer"), build)
        run(CMAKE, "--build", build, "--parallel", "2")
        plan = self.program("plan", "--model", "llama-3.2-1b", "--tp", "4")
        digest = re.fullmatch(r"plan ([0-9a-f]{32})\n", run(os.path.join(build, "plan"))).group(1)
        self.assertIn(digest, plan)
        self.assertEqual(run(os.path.join(build, "version")), f"version {self.version}\n")
        mpirun = [MPIEXEC, "--oversubscribe", "--timeout", "60", "-n", "3"]
        digest = re.search(r"(?m)^digest ([0-9a-f]{32})$", run(*mpirun, os.path.join(build, "update"))).group(1)
        theirs = run(*mpirun, self.path("bin", "weightcast"), "update", "--model=tiny", "--initial=synth:1", "--target=synth:2", "--device=host")
        self.assertIn(f"# digest {digest}\n", theirs)

    def test_components(self):
        source = os.path.join(self.folder, "components")
        os.mkdir(source)
        with open(os.path.join(source, "CMakeLists.txt"), "w", encoding="utf-8") as file:
            file.write("""cmake_minimum_required(VERSION 3.25)
project(components LANGUAGES C CXX)
find_package(weightcast COMPONENTS c OPTIONAL_COMPONENTS cuda nosuch)
message(STATUS "c ${weightcast_c_FOUND}, nosuch ${weightcast_nosuch_FOUND}, version ${weightcast_VERSION}")
if(TARGET weightcast::engine)
  message(FATAL_ERROR "the component c has brought cxx")
endif()
find_package(weightcast COMPONENTS nosuch)
if(weightcast_FOUND)
  message(FATAL_ERROR "nosuch was found")
endif()
""")
        self.assertIn(f"c TRUE, nosuch , version {self.version}", self.configure(source, os.path.join(source, "build")))

    def test_nothing_knows_where_it_was_built(self):
        for folder, _, names in os.walk(self.prefix):
            for name in names:
                if name.endswith((".cmake", ".py")) or folder.endswith(("completions", "modulefiles/weightcast", "man1")):
                    with open(os.path.join(folder, name), encoding="utf-8") as file:
                        text = file.read()
                    for path in (BUILD, os.path.join(self.folder, "first")):
                        self.assertNotIn(path, text, name)

    def test_every_header_is_there(self):
        root = os.path.join(HERE, "..", "..", "lib")
        for folder, _, names in os.walk(root):
            for name in names:
                if name.endswith((".hpp", ".h")) and "backend_" not in folder and os.path.basename(folder) != "capi":
                    self.assertTrue(os.path.exists(self.path("include", os.path.relpath(os.path.join(folder, name), root))), name)
        self.assertTrue(os.path.exists(self.path("include", "weightcast", "capi", "weightcast.h")))

    def test_module_file(self):
        modulecmd = next((path for path in ("/usr/lib/x86_64-linux-gnu/modulecmd.tcl", "/usr/share/modules/libexec/modulecmd.tcl")
                          if os.path.exists(path)), None)
        if modulecmd is None:
            self.skipTest("no environment-modules here")
        environment = {**os.environ, "MODULEPATH": self.path("share", "modulefiles")}
        settings = run("tclsh", modulecmd, "bash", "load", f"weightcast/{self.version}", env=environment)
        found = run("bash", "-c", settings + '\ncommand -v weightcast; python3 -c "import os; print(os.environ[\'PYTHONPATH\'])"; weightcast --version')
        self.assertIn(self.path("bin", "weightcast") + "\n" + self.path("lib", "weightcast", "python"), found)
        self.assertIn(f"weightcast {self.version}\n", found)

    def test_python(self):
        python = self.path("lib", "weightcast", "python")
        self.assertTrue(os.path.exists(os.path.join(python, "weightcast", "py.typed")))
        environment = {**os.environ, "PYTHONPATH": python}
        environment.pop("WEIGHTCAST_LIBRARY", None)
        found = subprocess.run(["python3", "-m", "weightcast"], env=environment, stdout=subprocess.PIPE, text=True).stdout
        library = os.path.realpath(self.path("lib")) + "/libweightcast.so.1"
        self.assertIn(f"libweightcast  {self.version}, {library} (of this installation)\n", found)

    def test_completion(self):
        def complete(*words):
            script = ('source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _weightcast; printf "%s\\n" "${COMPREPLY[@]}"')
            out = run("bash", "-c", script, "bash", self.path("share", "bash-completion", "completions", "weightcast"),
                      self.path("bin", "weightcast"), *words)
            return out.split()
        self.assertEqual(complete("s"), ["snapshot", "synth"])
        self.assertEqual(complete("--v"), ["--version"])
        self.assertEqual(complete("update", "--tr"),
                         ["--trainers", "--trainer-device", "--transport", "--truncate", "--trace"])
        self.assertEqual(complete("inspect", self.path("bin", "w")), [part for part in self.path("bin", "weightcast").split()])

    def test_manual(self):
        if not os.path.exists(self.path("share", "man")):
            self.skipTest("built without help2man")
        for name in ("weightcast", "weightcast-update"):
            with open(self.path("share", "man", "man1", name + ".1"), encoding="utf-8") as file:
                self.assertIn(".SH", file.read())
        with open(self.path("share", "man", "man1", "weightcast-update.1"), encoding="utf-8") as file:
            self.assertIn("transport", file.read())


if __name__ == "__main__":
    if len(sys.argv) < 7:
        sys.exit(__doc__)
    del sys.argv[1:7]
    unittest.main()
