#!/usr/bin/env python3
"""Both directions between weightcast and the reference implementation (PyPI `safetensors`), and one table of odd and
malformed files run through both readers.

usage: safetensors_interop.py SAFETENSORS_TOOL     run the test (exit 77: a module is missing)
       safetensors_interop.py --corpus FOLDER      write the table's files there (seeds of tests/fuzz/corpus)
"""
import json
import os
import re
import struct
import subprocess
import sys
import tempfile


def framed(header, data=b"", size=None):
    """A file: length, header (text, bytes or something to dump), data. `size` overrides the length that is announced."""
    if not isinstance(header, (str, bytes)):
        header = json.dumps(header)
    if isinstance(header, str):
        header = header.encode()
    return struct.pack("<Q", len(header) if size is None else size) + header + data


def tensor(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


F32 = tensor("F32", [2], 0, 8)
ONE = '{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
EMPTY = '{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
BIG = 2**64 - 1

# name: (bytes, the reference accepts, weightcast accepts)
CASES = {
    "plain": (framed({"a": F32}, bytes(8)), True, True),
    "metadata": (framed({"__metadata__": {"format": "pt", "x": "\u00fc"}, "a": F32}, bytes(8)), True, True),
    "no_tensors": (framed("{}"), True, True),
    "zero_sized": (framed({"a": tensor("F32", [0, 5], 0, 0), "b": F32, "c": tensor("F32", [5, 0], 8, 8)}, bytes(8)), True, True),
    "scalar": (framed({"a": tensor("F64", [], 0, 8)}, bytes(8)), True, True),
    "unaligned": (framed({"a": tensor("U8", [3], 0, 3), "b": tensor("F32", [2], 3, 11)}, bytes(11)), True, True),
    "order_of_bytes_not_of_names": (framed({"a": tensor("U8", [2], 1, 3), "b": tensor("U8", [1], 0, 1)}, bytes(3)), True, True),
    "trailing_space": (framed('{"a":%s}   \n\t ' % ONE, b"x"), True, True),
    "leading_space": (framed(' \r\n{"a":%s}' % ONE, b"x"), True, True),
    "escaped_name": (framed('{"\\u0061\\n\\ud83d\\ude00":%s}' % ONE, b"x"), True, True),
    "empty_name": (framed('{"":%s}' % ONE, b"x"), True, True),
    "half_bytes": (framed({"a": tensor("F4", [2], 0, 1)}, b"x"), True, True),
    "six_bits": (framed({"a": tensor("F6_E2M3", [4], 0, 3)}, b"xxx"), True, True),
    "fields_in_another_order": (framed('{"a":{"data_offsets":[0,1],"shape":[1],"dtype":"U8"}}', b"x"), True, True),
    "null_metadata": (framed('{"__metadata__":null,"a":%s}' % ONE, b"x"), True, True),
    # Taken by weightcast only: what is no string in __metadata__ is passed over.
    "metadata_holds_number": (framed('{"__metadata__":{"a":1}}'), False, True),
    # Refused by weightcast only: rules R1 to R4 of format.md.
    "duplicate_tensor": (framed('{"a":%s,"a":%s}' % (ONE, ONE), b"x"), True, False),
    "duplicate_after_escape": (framed('{"a":%s,"\\u0061":%s}' % (ONE, ONE), b"x"), True, False),
    "duplicate_metadata": (framed('{"__metadata__":{"k":"1","k":"2"},"a":%s}' % ONE, b"x"), True, False),
    "unknown_field": (framed({"a": {**F32, "stride": 1}}, bytes(8)), True, False),
    "tensor_as_array": (framed('{"a":["U8",[1],[0,1]]}', b"x"), True, False),
    "many_dimensions": (framed({"a": tensor("U8", [1] * 33, 0, 1)}, b"x"), True, False),
    # Refused by both.
    "nothing": (b"", False, False),
    "short_length": (b"\x02\0\0\0\0\0\0", False, False),
    "no_header": (framed(""), False, False),
    "header_truncated": (framed("{}", size=3), False, False),
    "header_length_max": (framed("{}", size=BIG), False, False),
    "header_length_wraps": (framed("{}", size=BIG - 7), False, False),
    "header_over_limit": (framed("{}", size=100_000_001), False, False),
    "data_truncated": (framed({"a": F32}, bytes(7)), False, False),
    "data_missing": (framed({"a": F32}), False, False),
    "trailing_byte": (framed({"a": F32}, bytes(9)), False, False),
    "data_without_tensors": (framed("{}", b"x"), False, False),
    "hole_at_start": (framed({"a": tensor("U8", [1], 1, 2)}, bytes(2)), False, False),
    "hole": (framed({"a": tensor("U8", [1], 0, 1), "b": tensor("U8", [1], 2, 3)}, bytes(3)), False, False),
    "overlap": (framed({"a": tensor("U8", [2], 0, 2), "b": tensor("U8", [2], 1, 3)}, bytes(3)), False, False),
    "same_bytes_twice": (framed({"a": tensor("U8", [2], 0, 2), "b": tensor("U8", [2], 0, 2)}, bytes(2)), False, False),
    "size_too_small": (framed({"a": tensor("F32", [2], 0, 7)}, bytes(7)), False, False),
    "size_too_large": (framed({"a": tensor("F32", [2], 0, 9)}, bytes(9)), False, False),
    "begin_after_end": (framed({"a": tensor("U8", [0], 1, 0)}, bytes(1)), False, False),
    "shape_overflows": (framed({"a": tensor("U8", [2**32, 2**32], 0, 0)}), False, False),
    "bits_overflow": (framed({"a": tensor("F64", [2**61], 0, 0)}), False, False),
    "shape_over_64_bits": (framed({"a": tensor("U8", [2**64], 0, 0)}), False, False),
    "offset_over_64_bits": (framed({"a": tensor("U8", [1], 0, 2**64 + 1)}, b"x"), False, False),
    "half_byte_left": (framed({"a": tensor("F4", [3], 0, 2)}, bytes(2)), False, False),
    "negative_extent": (framed({"a": tensor("U8", [-1], 0, 1)}, b"x"), False, False),
    "minus_zero": (framed('{"a":{"dtype":"U8","shape":[-0],"data_offsets":[0,0]}}'), False, False),
    "fraction": (framed('{"a":{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}}', b"x"), False, False),
    "exponent": (framed('{"a":{"dtype":"U8","shape":[1e0],"data_offsets":[0,1]}}', b"x"), False, False),
    "leading_zero": (framed('{"a":{"dtype":"U8","shape":[01],"data_offsets":[0,1]}}', b"x"), False, False),
    "one_offset": (framed('{"a":{"dtype":"U8","shape":[0],"data_offsets":[0]}}'), False, False),
    "three_offsets": (framed('{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0,0]}}'), False, False),
    "shape_is_number": (framed('{"a":{"dtype":"U8","shape":1,"data_offsets":[0,1]}}', b"x"), False, False),
    "shape_is_nested": (framed('{"a":{"dtype":"U8","shape":[[1]],"data_offsets":[0,1]}}', b"x"), False, False),
    "offsets_is_string": (framed('{"a":{"dtype":"U8","shape":[1],"data_offsets":"0,1"}}', b"x"), False, False),
    "dtype_unknown": (framed({"a": tensor("BF17", [1], 0, 2)}, bytes(2)), False, False),
    "dtype_lower_case": (framed({"a": tensor("f32", [2], 0, 8)}, bytes(8)), False, False),
    "dtype_is_number": (framed({"a": tensor(5, [2], 0, 8)}, bytes(8)), False, False),
    "no_dtype": (framed('{"a":{"shape":[0],"data_offsets":[0,0]}}'), False, False),
    "no_shape": (framed('{"a":{"dtype":"U8","data_offsets":[0,0]}}'), False, False),
    "no_offsets": (framed('{"a":{"dtype":"U8","shape":[0]}}'), False, False),
    "tensor_is_string": (framed('{"a":"U8"}'), False, False),
    "tensor_is_null": (framed('{"a":null}'), False, False),
    "metadata_is_string": (framed('{"__metadata__":"pt"}'), False, False),
    "metadata_holds_object": (framed('{"__metadata__":{"a":{}}}'), False, False),
    "header_is_array": (framed("[]"), False, False),
    "header_is_number": (framed("0"), False, False),
    "two_objects": (framed("{}{}"), False, False),
    "trailing_comma": (framed('{"a":%s,}' % EMPTY), False, False),
    "comment": (framed("{}//"), False, False),
    "trailing_nul": (framed(b"{}\0"), False, False),
    "byte_order_mark": (framed(b"\xef\xbb\xbf{}"), False, False),
    "not_utf8": (framed(b'{"\xff":%s}' % EMPTY.encode()), False, False),
    "overlong_utf8": (framed(b'{"\xc0\x80":%s}' % EMPTY.encode()), False, False),
    "lone_surrogate": (framed('{"\\ud800":%s}' % EMPTY), False, False),
    "control_character": (framed('{"a\n":%s}' % EMPTY), False, False),
    "deep_arrays": (framed("[" * 5_000), False, False),
    "deep_objects": (framed('{"a":' * 1000 + "1" + "}" * 1000), False, False),
}


def pattern(index, count):
    return bytes((31 * j + 7 * index + j // 256) % 256 for j in range(count))


def our_read(tool, path):
    """{name: (dtype, shape, bytes)} as weightcast reads `path`, or None when it refuses it."""
    done = subprocess.run([tool, "read", path], capture_output=True, text=True)
    if done.returncode == 65:
        assert re.search(rf"{re.escape(str(path))}(: safetensors (header|data), byte \d+: | is empty| is not a safetensors file: )", done.stderr), done.stderr
        return None
    assert done.returncode == 0, (done.returncode, done.stderr)
    rows = [line.split("|") for line in done.stdout.splitlines()]
    return {
        bytes.fromhex(name).decode(): (dtype, [int(n) for n in shape.split(",") if n], bytes.fromhex(data))
        for name, dtype, shape, data in rows
    }


def their_read(path):
    """The same by the reference reader."""
    with open(path, "rb") as file:
        tensors = safetensors.deserialize(file.read())
    return {name: (t["dtype"], list(t["shape"]), bytes(t["data"])) for name, t in tensors}


def they_write_we_read(tool, folder):
    names = ["bool", "uint8", "int8", "int16", "uint16", "float16", "bfloat16", "int32", "uint32", "float32",
             "float64", "int64", "uint64", "complex64", "float8_e4m3fn", "float8_e5m2"]
    arrays = {}
    for index, name in enumerate(names):
        dtype = numpy.dtype(getattr(ml_dtypes, name, name))
        shape = [index, 3, 2] if index % 3 else [index + 1]
        count = int(numpy.prod(shape))
        arrays[f"layer.{index}.{name}"] = numpy.frombuffer(pattern(index, count * dtype.itemsize), dtype).reshape(shape)
    path = os.path.join(folder, "theirs.safetensors")
    safetensors.numpy.save_file(arrays, path, {"format": "pt"})
    ours = our_read(tool, path)
    assert ours == their_read(path)
    assert {n: (s, d) for n, (_, s, d) in ours.items()} == {n: (list(a.shape), a.tobytes()) for n, a in arrays.items()}

    # A folder with an index, one of the shards a symbolic link as in a Hugging Face cache.
    folder = os.path.join(folder, "theirs")
    os.makedirs(os.path.join(folder, "blobs"))
    arrays = {f"w{i}": numpy.arange(i * 7, dtype="float32").reshape(7, i) for i in range(5)}
    weight_map = {}
    for shard, part in enumerate((("w0", "w3"), ("w1", "w2", "w4"))):
        file = f"model-{shard + 1:05}-of-00002.safetensors"
        safetensors.numpy.save_file({n: arrays[n] for n in part}, os.path.join(folder, "blobs" if shard else "", file))
        weight_map.update(dict.fromkeys(part, file))
        if shard:
            os.symlink(os.path.join("blobs", file), os.path.join(folder, file))
    with open(os.path.join(folder, "model.safetensors.index.json"), "w") as file:
        json.dump({"metadata": {"total_size": 280}, "weight_map": weight_map}, file)
    ours = our_read(tool, folder)
    assert ours == {n: ("F32", list(a.shape), a.tobytes()) for n, a in arrays.items()}


def we_write_they_read(tool, folder):
    for shard_bytes in (1 << 30, 1000):
        path = os.path.join(folder, f"ours.{shard_bytes}")
        subprocess.run([tool, "write", path, str(shard_bytes)], check=True)
        files = sorted(f for f in os.listdir(path) if f.endswith(".safetensors"))
        theirs = {}
        for file in files:
            part = their_read(os.path.join(path, file))
            with safetensors.safe_open(os.path.join(path, file), framework="numpy") as opened:
                assert opened.metadata() == {"format": "pt"}
                assert sorted(opened.keys()) == sorted(part)
            theirs.update(part)
        assert theirs == our_read(tool, path)
        assert len(theirs) == 24
        assert theirs["scalar"] == ("F32", [], pattern(22, 4))
        assert theirs['ten "quoted" \\ \n Gewicht-ü'] == ("BF16", [1, 2, 3, 4], pattern(23, 48))
        index = os.path.join(path, "model.safetensors.index.json")
        if shard_bytes == 1000:
            with open(index) as file:
                loaded = json.load(file)
            assert loaded["metadata"]["total_size"] == sum(len(data) for _, _, data in theirs.values())
            assert len(files) > 2 and set(loaded["weight_map"].values()) == set(files)
            assert all(name in their_read(os.path.join(path, file)) for name, file in loaded["weight_map"].items())
        else:
            assert files == ["model.safetensors"] and not os.path.exists(index)


def both_judge(tool, folder):
    wrong = []
    for name, (content, they_should, we_should) in CASES.items():
        path = os.path.join(folder, name + ".safetensors")
        with open(path, "wb") as file:
            file.write(content)
        ours = our_read(tool, path)
        try:
            theirs = their_read(path)
        except safetensors.SafetensorError:
            theirs = None
        if (ours is not None, theirs is not None) != (we_should, they_should):
            wrong.append(f"{name}: weightcast accepts {ours is not None}, the reference {theirs is not None}")
        if we_should and they_should and ours != theirs:
            wrong.append(f"{name}: read differently: {ours} and {theirs}")
    assert not wrong, "\n".join(wrong)


def write_corpus(folder):
    for name, (content, _, _) in CASES.items():
        with open(os.path.join(folder, name), "wb") as file:
            file.write(content)


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == "--corpus":
        write_corpus(sys.argv[2])
        sys.exit(0)
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        import ml_dtypes
        import numpy
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        print(f"skipped: {error} (pip install numpy safetensors h5py ml_dtypes)")
        sys.exit(77)
    with tempfile.TemporaryDirectory() as temporary:
        they_write_we_read(sys.argv[1], temporary)
        we_write_they_read(sys.argv[1], temporary)
        both_judge(sys.argv[1], temporary)
    print(f"both directions agree; {len(CASES)} odd or malformed files judged as expected, safetensors {safetensors.__version__}")
