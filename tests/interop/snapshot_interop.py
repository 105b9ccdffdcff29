#!/usr/bin/env python3
"""A snapshot as other programs see it: h5py (values, raw bits, attributes, digests), h5dump and h5diff.

usage: snapshot_interop.py SNAPSHOT_TOOL      (exit 77: h5py, numpy or the HDF5 tools are missing)
"""
import json
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
if not shutil.which("h5dump") or not shutil.which("h5diff"):
    print("skipped: no h5dump or h5diff (Debian: hdf5-tools)")
    sys.exit(77)

KINDS = {"BF16": "f", "F16": "f", "F32": "f", "F64": "f", "BOOL": "u", "F8_E4M3": "u"}


def content(seed, p, size):
    return bytes((seed + 17 * p + 131 * i + i // 256) % 256 for i in range(size))


def raw_bits(dataset):
    """The dataset's bytes, without any conversion."""
    file_type = dataset.id.get_type()
    array = numpy.zeros(dataset.shape, dtype="V%d" % file_type.get_size())
    if dataset.size:
        dataset.id.read(h5py.h5s.ALL, h5py.h5s.ALL, array, mtype=file_type)
    return array.tobytes()


def check(path, names, version, seed):
    with open(path, "rb") as file:
        block = json.loads(file.read(4096))
    assert block == {"schema": "weightcast.snapshot/1", "version": version, "settings": {"tool": "x"}}, block
    with h5py.File(path, "r") as file:
        assert file.userblock_size == 4096
        assert file.attrs["format"] == b"weightcast.snapshot" and file.attrs["format_version"] == 1
        assert json.loads(file.attrs["config"])["hidden_size"] == 64
        parameters = file["parameters"]
        assert sorted(parameters) == sorted(names) and list(file) == ["parameters"]
        rows = []
        for p, name in enumerate(names):
            dataset = parameters[name]
            dtype = dataset.attrs["dtype"].decode()
            bits = raw_bits(dataset)
            assert bits == content(seed, p, len(bits)), name
            assert len(bits) == dataset.size * dataset.id.get_type().get_size()
            digest = dataset.attrs["digest"].decode()
            assert digest == digest_reference.digest(bits, 0), name
            assert dataset.chunks is None and dataset.compression is None
            kind = KINDS.get(dtype, dtype[0].lower())
            if kind != "f" or dtype != "BF16":
                assert dataset.dtype.kind == kind, (name, dataset.dtype)
            rows.append((name, dtype, list(dataset.shape), digest))
        # bf16 as values: the library widens it to float32, which is the bits shifted
        dataset = parameters["extra.BF16"]
        bits = numpy.frombuffer(raw_bits(dataset), dtype="<u2").astype("<u4") << 16
        values = numpy.asarray(dataset[...]).astype("f4").ravel()
        expected = bits.view("<f4")
        assert numpy.array_equal(values, expected, equal_nan=True)
        total = digest_reference.set_digest(rows)
        assert total is None or file.attrs["digest"].decode() == total
    return len(names)


def main():
    with tempfile.TemporaryDirectory() as folder:
        def write(name, version, seed):
            path = "%s/%s.h5" % (folder, name)
            run = subprocess.run([sys.argv[1], path, str(version), str(seed)], stdout=subprocess.PIPE, check=True)
            return path, run.stdout.decode().split()

        a, names = write("a", 1, 0)
        same, _ = write("same", 2, 0)
        other, _ = write("other", 1, 1)
        count = check(a, names, 1, 0)
        check(other, names, 1, 1)
        text = subprocess.run(["h5dump", "-d", "/parameters/extra.BF16", a], stdout=subprocess.PIPE, check=True).stdout.decode()
        assert "16-bit little-endian floating-point" in text and "( 3, 5, 7 )" in text, text
        subprocess.run(["h5dump", "-H", a], stdout=subprocess.DEVNULL, check=True)
        assert subprocess.run(["h5diff", a, same]).returncode == 0, "equal weights of another version differ"
        assert subprocess.run(["h5diff", "-q", a, other]).returncode == 1, "other weights do not differ"
        print("%d datasets: bits, digests and attributes as expected in h5py %s; h5dump and h5diff agree"
              % (count, h5py.__version__))


if __name__ == "__main__":
    main()
