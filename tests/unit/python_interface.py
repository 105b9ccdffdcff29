#!/usr/bin/env python3
"""The package in tools/python says what it takes and gives: every public class, function, method and property has a docstring
and complete type hints that can be read, and none of its files is beyond Python 3.9. Needs nothing else than Python; with
mypy, numpy, torch and mpi4py installed mypy checks the files, too.

usage: python_interface.py
"""

import ast
import enum
import importlib.util
import inspect
import pathlib
import subprocess
import sys
import types
import typing

PACKAGE = pathlib.Path(__file__).resolve().parents[2] / "tools/python/weightcast"
sys.path.insert(0, str(PACKAGE.parent))
import weightcast  # noqa: E402

# What hints name without importing it.
NAMES = {"MPI": types.SimpleNamespace(Comm=object), "torch": types.SimpleNamespace(Tensor=object, device=object),
         "numpy": types.SimpleNamespace(ndarray=dict)}
problems = []


def look_at_function(where, function):
    if not inspect.getdoc(function):
        problems.append(f"{where} has no docstring")
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.annotation is parameter.empty and name != "self":
            problems.append(f"{where}: {name} has no type")
    hints = typing.get_type_hints(function, localns=NAMES)
    if "return" not in hints:
        problems.append(f"{where} does not say what it returns")


def look_at_class(kind):
    if not kind.__doc__:
        problems.append(f"{kind.__name__} has no docstring")
    if issubclass(kind, (enum.Enum, tuple)):  # their methods are Python's
        members = {name: member for name, member in vars(kind).items() if isinstance(member, property)}
    else:
        members = {name: inspect.getattr_static(kind, name) for base in kind.__mro__
                   if base.__module__.startswith("weightcast") for name in vars(base)}
    for name, member in members.items():
        where = f"{kind.__name__}.{name}"
        if name.startswith("_") and name != "__init__":
            continue
        if isinstance(member, property):
            look_at_function(where, member.fget)
        elif inspect.isfunction(member):
            look_at_function(where, member)


for public in weightcast.__all__:
    thing = getattr(weightcast, public)
    if inspect.isclass(thing):
        look_at_class(thing)
        assert thing.__module__ == "weightcast", thing
for path in sorted(PACKAGE.glob("*.py")):
    ast.parse(path.read_text(), feature_version=(3, 9))
assert (PACKAGE / "py.typed").exists()
assert len(inspect.getdoc(weightcast.Trainer.publish).splitlines()) > 5
print("\n".join(problems) or "every public name has a docstring and types")
if all(importlib.util.find_spec(package) for package in ("mypy", "numpy", "torch", "mpi4py")):
    if subprocess.run([sys.executable, "-m", "mypy", "--strict", "--cache-dir=/dev/null", PACKAGE]).returncode != 0:
        problems.append("mypy")
sys.exit(1 if problems else 0)
