#!/usr/bin/env python3
"""Quantisation held against torch: scales and bytes, bit by bit, by block and by channel, of F32, BF16 and F16.

usage: torch_quantize.py QUANTIZE_TOOL      (exit 77: no torch)

WEIGHTCAST_QUANTIZE_ELEMENTS says how many elements of each kind and type (1,000,000), over all distributions. The vectors of
lib/weightcast/device/quantize.md are held against torch, too.
"""
import os
import pathlib
import struct
import subprocess
import sys
import time

try:
    import torch
    import torch.nn.functional as functional
except ImportError as error:
    print(f"skipped: {error} (WEIGHTCAST_TORCH_PYTHON in tests/README.md names a Python that has it)")
    sys.exit(77)

BLOCK = 128
KINDS = ["block", "channel"]
TYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(1024, 4096), (1000, 3001), (127, 257), (1, 100000), (385, 64), (2049, 1), (130, 28672)]


def reference(kind, weight):
    """What quantize.md says, in torch."""
    rows, columns = weight.shape
    x = weight.float()
    if kind == "channel":
        scale = x.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 448.0
        return (x / scale).clamp(-448, 448).to(torch.float8_e4m3fn), scale
    x = functional.pad(x, (0, -columns % BLOCK, 0, -rows % BLOCK))
    blocks = x.view(x.shape[0] // BLOCK, BLOCK, x.shape[1] // BLOCK, BLOCK)
    scale = blocks.abs().amax(dim=(1, 3), keepdim=True).clamp(min=1e-12) / 448.0
    fp8 = (blocks / scale).clamp(-448, 448).to(torch.float8_e4m3fn).view(x.shape)
    return fp8[:rows, :columns], scale.view(scale.shape[0], scale.shape[2])


def normal(shape, generator):
    return torch.randn(shape, generator=generator) * 0.02


def wide(shape, generator):
    """Magnitudes of all sizes in each block."""
    return torch.randn(shape, generator=generator) * torch.exp2(torch.randint(-30, 5, shape, generator=generator).float())


def ties(shape, generator):
    """448 in nearly every block or row, so scale 1, and halves of the steps."""
    return torch.randint(-896, 897, shape, generator=generator).float() / torch.tensor([2.0, 64.0, 512.0])[
        torch.randint(0, 3, shape, generator=generator)]


def tiny(shape, generator):
    """About the least scale, and below what floats have in full."""
    return torch.randn(shape, generator=generator) * torch.exp2(torch.randint(-150, -35, (shape[0], 1), generator=generator).float())


def bits(shape, generator):
    """Any bits: NaN and infinity are among them."""
    return torch.randint(-2**31, 2**31, shape, generator=generator, dtype=torch.int64).to(torch.int32).view(torch.float32)


def zeros(shape, generator):
    return torch.zeros(shape) * torch.where(torch.rand(shape, generator=generator) < 0.5, -1.0, 1.0)


def damaged(shape, generator):
    """Weights, one in 20,000 of which is NaN or infinite."""
    chance = torch.rand(shape, generator=generator)
    weight = normal(shape, generator)
    weight[chance < 2e-5] = float("nan")
    weight[(chance >= 2e-5) & (chance < 3.5e-5)] = float("inf")
    weight[(chance >= 3.5e-5) & (chance < 5e-5)] = -float("inf")
    return weight


DISTRIBUTIONS = [normal, wide, ties, tiny, bits, zeros, damaged]


class Tool:
    def __init__(self, path):
        self.process = subprocess.Popen([path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def quantize(self, kind, weight, kernel=-1):
        rows, columns = weight.shape
        self.process.stdin.write(struct.pack("<5q", KINDS.index(kind), TYPES.index(weight.dtype), rows, columns, kernel))
        self.process.stdin.write(weight.contiguous().view(torch.uint8).numpy().tobytes())
        self.process.stdin.flush()
        shape = (rows, 1) if kind == "channel" else (-(-rows // BLOCK), -(-columns // BLOCK))
        scale = self.read(4 * shape[0] * shape[1]).view(torch.float32).view(shape)
        return self.read(rows * columns).view(rows, columns), scale

    def read(self, size):
        data = bytearray(size)
        if self.process.stdout.readinto(data) != size:
            sys.exit("the tool ended")
        return torch.frombuffer(data, dtype=torch.uint8) if size else torch.empty(0, dtype=torch.uint8)

    def close(self):
        self.process.stdin.close()
        if self.process.wait() != 0:
            sys.exit("the tool failed")


def differing(weight, fp8, scale, expected_fp8, expected_scale):
    """How many scales and bytes differ. NaN is NaN; its sign, which processors disagree on, is that of the element."""
    scales = (scale.view(torch.int32) != expected_scale.contiguous().view(torch.int32)) & ~(scale.isnan() & expected_scale.isnan())
    expected = expected_fp8.contiguous().view(torch.uint8)
    expected = torch.where((expected & 0x7F) == 0x7F, torch.where(weight.float().signbit(), 0xFF, 0x7F).to(torch.uint8), expected)
    return int(scales.sum()), int((fp8 != expected).sum())


def check_vectors(tool):
    text = (pathlib.Path(__file__).resolve().parents[2] / "lib/weightcast/device/quantize.md").read_text()
    vectors = [[cell.strip() for cell in line.strip("|").replace("`", "").split("|")] for line in text.splitlines()
               if line.startswith("| `")]
    assert len(vectors) >= 8
    for elements, scale_bits, expected in vectors:
        weight = torch.tensor([[float(value) if "x" not in value else float.fromhex(value) for value in elements.split()]])
        for kind in KINDS:
            fp8, scale = reference(kind, weight)
            assert differing(weight, *tool.quantize(kind, weight), fp8, scale) == (0, 0), (elements, fp8.view(torch.uint8), scale)
            assert scale.isnan() or "%08x" % scale.view(torch.int32).item() == scale_bits, (elements, scale)
            assert bytes.fromhex(expected) == tool.quantize(kind, weight)[0].numpy().tobytes(), elements
    print("%d vectors" % len(vectors))


def main():
    tool = Tool(sys.argv[1])
    check_vectors(tool)
    wanted = int(os.environ.get("WEIGHTCAST_QUANTIZE_ELEMENTS", "1000000"))
    failed = False
    for kind in KINDS:
        for dtype in TYPES:
            generator = torch.Generator().manual_seed(1)
            start, elements, scales, wrong_scales, wrong_bytes, turn = time.monotonic(), 0, 0, 0, 0, 0
            # Every distribution once, whatever that is, then as many as are wanted.
            while elements < wanted or turn < len(DISTRIBUTIONS):
                distribution = DISTRIBUTIONS[turn % len(DISTRIBUTIONS)]
                shape = SHAPES[(turn + turn // len(DISTRIBUTIONS)) % len(SHAPES)]
                if wanted <= 1000000:
                    shape = (min(shape[0], 300), min(shape[1], 1000))
                weight = distribution(shape, generator).to(dtype)
                fp8, scale = tool.quantize(kind, weight)
                bad_scales, bad_bytes = differing(weight, fp8, scale, *reference(kind, weight))
                if bad_scales or bad_bytes:
                    print("%s %s %s %s: %d scales and %d bytes differ" % (kind, dtype, distribution.__name__, shape, bad_scales, bad_bytes))
                wrong_scales, wrong_bytes = wrong_scales + bad_scales, wrong_bytes + bad_bytes
                elements, scales, turn = elements + weight.numel(), scales + scale.numel(), turn + 1
            print("%s %s: %d elements, %d scales; %d bytes and %d scales differ from torch %s (%.1f s)" %
                  (kind, str(dtype).split(".")[1], elements, scales, wrong_bytes, wrong_scales, torch.__version__, time.monotonic() - start))
            failed = failed or wrong_bytes > 0 or wrong_scales > 0
    tool.close()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
