#!/usr/bin/env python3
"""A chain of deltas as other programs see it: h5py and numpy rebuild the weights from the whole snapshot and the deltas, by
lib/weightcast/snapshot/format.md alone, and hold them against the digests in the files; h5dump shows what changed.

usage: delta_interop.py SNAPSHOT_TOOL      (exit 77: h5py, numpy or h5dump are missing)
"""
import json
import os
import shutil
import subprocess
import sys
import tempfile

import digest_reference

try:
    import h5py
    import numpy
except ImportError as error:
    print(f"skipped: {error} (pip install numpy safetensors h5py ml_dtypes)")
    sys.exit(77)
if not shutil.which("h5dump"):
    print("skipped: no h5dump (Debian: hdf5-tools)")
    sys.exit(77)

BLOCK = 4096


def content(p, size, seed=None):
    base = ((17 * p + 131 * i + i // 256) % 256 for i in range(size))
    if seed is None:
        return bytes(base)
    return bytes((byte + (seed if (7 * i + p) // 16 % seed == 0 else 0)) % 256 for i, byte in enumerate(base))


def raw(dataset):
    """The flattened elements as they are in the file, without any conversion."""
    file_type = dataset.id.get_type()
    array = numpy.zeros(dataset.shape, dtype="V%d" % file_type.get_size())
    if dataset.size:
        dataset.id.read(h5py.h5s.ALL, h5py.h5s.ALL, array, mtype=file_type)
    return array.reshape(-1)


def text(attributes, name):
    return attributes[name].decode()


def rebuild(path):
    """Name -> (dtype, shape, elements, digest) of the version that a file holds."""
    with h5py.File(path, "r") as file:
        assert file.attrs["format_version"] == 1
        if file.attrs["format"] == b"weightcast.snapshot":
            return {name: (text(d.attrs, "dtype"), d.shape, raw(d), text(d.attrs, "digest")) for name, d in file["parameters"].items()}
        assert file.attrs["format"] == b"weightcast.delta" and list(file) == ["delta"]
        base = text(file.attrs, "base")
        assert "/" not in base
        base = os.path.join(os.path.dirname(path), base)
        weights = rebuild(base)
        with h5py.File(base, "r") as other:
            assert text(file.attrs, "base_digest") == text(other.attrs, "digest")
        for name, change in file["delta"].items():
            dtype, shape, elements, digest = weights[name]
            assert sorted(change) == ["indices", "starts", "values"]
            assert text(change.attrs, "dtype") == dtype and text(change.attrs, "base_digest") == digest
            starts, indices, values = change["starts"], change["indices"], raw(change["values"])
            assert starts.dtype == numpy.dtype("<u8") and indices.dtype == numpy.dtype("<u2")
            starts, indices = starts[...].astype("i8"), indices[...].astype("i8")
            blocks = -(-elements.size // BLOCK)
            assert starts.shape == (blocks + 1,) and starts[0] == 0 and starts[-1] == indices.size == values.size > 0
            counts = numpy.diff(starts)
            assert (counts >= 0).all() and (counts <= BLOCK).all()
            places = numpy.repeat(numpy.arange(blocks), counts) * BLOCK + indices
            assert (numpy.diff(places) > 0).all() and (indices < BLOCK).all() and places[-1] < elements.size
            changed = elements.copy()
            changed[places] = values
            assert all(changed[i].tobytes() != elements[i].tobytes() for i in places), "an entry that changes nothing"
            weights[name] = dtype, shape, changed, text(change.attrs, "digest")
        total = digest_reference.set_digest([(name, dtype, list(shape), digest) for name, (dtype, shape, _, digest) in weights.items()])
        assert total is None or text(file.attrs, "digest") == total
        return weights


def main():
    with tempfile.TemporaryDirectory() as folder:
        def write(name, version, seed, *base):
            path = os.path.join(folder, name)
            run = subprocess.run([sys.argv[1], path, str(version), str(seed), *base], stdout=subprocess.PIPE, check=True)
            return path, run.stdout.decode().split()

        whole, names = write("0.h5", 1, 0)
        one, _ = write("1.h5", 2, 150, whole)
        two, _ = write("2.h5", 3, 7, one)
        for path, seed in ((whole, None), (one, 150), (two, 7)):
            weights = rebuild(path)
            assert sorted(weights) == sorted(names)
            for p, name in enumerate(names):
                _, _, elements, digest = weights[name]
                assert elements.tobytes() == content(p, elements.nbytes, seed), (path, name)
                if path == two:
                    assert digest == digest_reference.digest(elements.tobytes(), 0), name
        with open(two, "rb") as file:
            block = json.loads(file.read(4096))
        assert block == {"schema": "weightcast.snapshot/1", "version": 3, "base_version": 2, "settings": {"tool": "x"}}, block
        with h5py.File(one, "r") as file:
            few = len(file["delta"])
            assert 0 < few < len(names), "every parameter changed, or none"
        dumped = subprocess.run(["h5dump", "-d", "/delta/extra.F32/values", "-d", "/delta/extra.F32/indices", two],
                                stdout=subprocess.PIPE, check=True).stdout.decode()
        assert "H5T_IEEE_F32LE" in dumped and "H5T_STD_U16LE" in dumped, dumped
        dumped = subprocess.run(["h5dump", "-d", "/delta/extra.BF16/values", two], stdout=subprocess.PIPE, check=True).stdout.decode()
        assert "16-bit little-endian floating-point" in dumped, dumped
        print("%d parameters rebuilt from two deltas by h5py %s, %d of them changed in the first; h5dump shows them"
              % (len(names), h5py.__version__, few))


if __name__ == "__main__":
    main()
