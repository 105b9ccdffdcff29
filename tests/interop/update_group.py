"""What the tests of tools/python/weightcast share: rank 0 publishes a small Llama, the other ranks are its engine.
Imported before weightcast, it says where that is; where numpy or mpi4py is not there, it ends the program with 77."""

import pathlib
import sys
import traceback

try:
    import numpy as np
    from mpi4py import MPI
except ImportError as error:
    print(f"skipped: {error} (Debian: python3-numpy, python3-mpi4py)")
    sys.exit(77)

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tools/python"))
import weightcast  # noqa: E402

COMM = MPI.COMM_WORLD
TRAINER = COMM.rank == 0
HEAD, EMBEDDING, NORM = "lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"


def shapes_of(layers, tied=False):
    """{name: shape} of all parameters; with three layers and a head of its own the model `tiny`."""
    shapes = {EMBEDDING: (200, 64), NORM: (64,)} | ({} if tied else {HEAD: (200, 64)})
    for layer in range(layers):
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in {
            "input_layernorm": (64,), "post_attention_layernorm": (64,), "self_attn.q_proj": (64, 64),
            "self_attn.k_proj": (16, 64), "self_attn.v_proj": (16, 64), "self_attn.o_proj": (64, 64),
            "mlp.gate_proj": (96, 64), "mlp.up_proj": (96, 64), "mlp.down_proj": (64, 96)}.items()}
    return shapes


def random_masters(shapes, version):
    """Every fp32 weight of a version, the same on all ranks."""
    random = np.random.default_rng(version)
    return {name: random.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def to_bf16(values):
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)


def join(model, **options):
    return (weightcast.Trainer if TRAINER else weightcast.Engine)(model, timeout_s=20, **options)


def refuses(code, texts, call):
    """`call` must fail like this; `texts`: one or several."""
    texts = (texts,) if isinstance(texts, str) else texts
    try:
        call()
    except weightcast.WeightcastError as error:
        assert error.code == code and all(text in error.message for text in texts) and not error.lost, \
            (error.code, error.message)
        return
    raise AssertionError(f"not refused: {texts}")


def run(*cases):
    for case in cases:
        try:
            case()
        except BaseException:  # the other ranks wait for this one
            traceback.print_exc()
            COMM.Abort(1)
        COMM.barrier()
        if TRAINER:
            print(f"{case.__name__}: as expected")
