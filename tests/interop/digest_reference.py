#!/usr/bin/env python3
"""Recomputes every test vector of lib/weightcast/verify/digest.md from the definition there, byte by byte.

Only the standard library is used, so that this file is a second, independent statement of the definition.
The digest of a set needs XXH3-128: taken from libxxhash when the machine has it, else that vector is passed over.
"""
import ctypes
import ctypes.util
import pathlib
import struct
import sys

MASK = 2**64 - 1


def splitmix64(x):
    z = (x + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def digest(data, offset):
    sums = [0, 0]
    for i, byte in enumerate(data):
        position = offset + i
        word = position // 4
        contribution = byte << (8 * (position % 4))
        for lane in range(2):
            key = splitmix64((0x7765696768746361 + 256 * lane + word % 256) & MASK) >> 32 | 1
            factor = splitmix64((0x73742D6469676573 + 2 * (word // 256) + lane) & MASK) | 1
            sums[lane] = (sums[lane] + factor * key * contribution) & MASK
    return "%016x%016x" % tuple(sums)


def pattern(name, size):
    if name == "ramp":
        return bytes((7 + 131 * i + i // 256) % 256 for i in range(size))
    return bytes.fromhex(name)


class Xxh128(ctypes.Structure):
    _fields_ = [("low64", ctypes.c_uint64), ("high64", ctypes.c_uint64)]


def set_digest(rows):
    """rows: (name, dtype, shape, digest) in any order; nothing when there is no libxxhash."""
    library = ctypes.util.find_library("xxhash")
    if not library:
        return None
    function = ctypes.CDLL(library).XXH3_128bits
    function.restype = Xxh128
    function.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
    text = b""
    for name, dtype, shape, value in sorted((name.encode(), *rest) for name, *rest in rows):
        text += struct.pack("<Q", len(name)) + name
        text += struct.pack("<Q", len(dtype)) + dtype.encode()
        text += struct.pack("<Q", len(shape)) + b"".join(struct.pack("<Q", extent) for extent in shape)
        text += struct.pack("<QQ", int(value[:16], 16), int(value[16:], 16))
    result = function(text, len(text))
    return "%016x%016x" % (result.high64, result.low64)


def table(text, heading):
    """The rows of the first Markdown table after `heading`, as lists of cells without their backquotes."""
    lines = iter(text[text.index(heading):].splitlines())
    rows = []
    for line in lines:
        if line.startswith("|"):
            rows.append([cell.strip().strip("`") for cell in line.strip("|").split("|")])
        elif rows:
            break
    return rows[2:]


def main():
    path = pathlib.Path(__file__).resolve().parents[2] / "lib/weightcast/verify/digest.md"
    text = path.read_text()
    wrong = checked = 0
    for data, size, offset, expected in table(text, "## Test vectors"):
        computed = digest(pattern(data, int(size)), int(offset))
        checked += 1
        if computed != expected:
            wrong += 1
            print("%s, %s bytes at offset %s: computed %s, digest.md says %s" % (data, size, offset, computed, expected))
    rows = [(name, dtype, [int(n) for n in shape.split()], value) for name, dtype, shape, value in
            table(text, "## Test vector of a set")]
    expected = text[text.index("Its digest is `"):].split("`")[1]
    computed = set_digest(rows)
    if computed is None:
        print("no libxxhash here: the set's vector was not recomputed")
    else:
        checked += 1
        if computed != expected:
            wrong += 1
            print("set: computed %s, digest.md says %s" % (computed, expected))
    print("%d vectors recomputed, %d wrong" % (checked, wrong))
    return 1 if wrong or checked < 10 else 0


if __name__ == "__main__":
    sys.exit(main())
