"""Models for tools/baseline_torch.py: their parameters, in the order and cut by the rules of `weightcast plan`.

Pure tables, without torch: the tests hold them against the program.
"""

import json
import os
from typing import NamedTuple

OK, USAGE, BAD_DATA, UNAVAILABLE, INTERNAL, CANT_CREATE, MISMATCH, CONFIG, DEADLINE = 0, 64, 65, 69, 70, 73, 76, 78, 124


class Failure(Exception):
    """What ends the program, with its exit code."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


class Config(NamedTuple):
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied: bool = False
    family: str = "llama"
    attention_bias: bool = False
    mlp_bias: bool = False
    dtype: str = "bfloat16"


SHAPES = {
    "llama-3.2-1b": Config(16, 2048, 32, 8, 64, 8192, 128256, tied=True),
    "llama-3.1-8b": Config(32, 4096, 32, 8, 128, 14336, 128256),
    "smollm2-135m": Config(30, 576, 9, 3, 64, 1536, 49152, tied=True),
    "tiny": Config(3, 64, 8, 2, 8, 96, 200),
}


class Parameter(NamedTuple):
    name: str
    shape: tuple
    engine_tensor: str  # several parameters share a fused one, in the order of the list
    kind: str           # replicated, rows, columns, kv heads or vocabulary
    units: int          # what must be cut evenly


def load_config(name):
    """A named shape, or a config.json (or the folder that holds one)."""
    if name in SHAPES:
        return SHAPES[name]
    path = os.path.join(name, "config.json") if os.path.isdir(name) else name
    if not os.path.exists(path):
        raise Failure(USAGE, f"'{name}' is neither a known model shape nor a config.json: "
                             f"name one of {', '.join(SHAPES)}, a config.json, or a folder that holds one")
    try:
        with open(path, encoding="utf-8") as file:
            keys = json.load(file)
        family = keys["model_type"]
        heads, hidden = keys["num_attention_heads"], keys["hidden_size"]
        config = Config(layers=keys["num_hidden_layers"], hidden=hidden, heads=heads,
                        kv_heads=keys.get("num_key_value_heads") or heads,
                        head_dim=keys.get("head_dim") or hidden // heads, intermediate=keys["intermediate_size"],
                        vocabulary=keys["vocab_size"], tied=keys.get("tie_word_embeddings") or False, family=family,
                        attention_bias=family == "qwen2" or keys.get("attention_bias") or False,
                        mlp_bias=family == "llama" and keys.get("mlp_bias") or False,
                        dtype=keys.get("torch_dtype") or keys.get("dtype") or "bfloat16")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Failure(BAD_DATA, f"{path}: not a usable config.json: {error!r}") from error
    if family not in ("llama", "qwen2", "qwen3"):
        raise Failure(CONFIG, f"{path}: model_type '{family}' is not supported: llama, qwen2 and qwen3 are")
    if config.dtype not in ("bfloat16", "float16", "float32"):
        raise Failure(CONFIG, f"{path}: dtype '{config.dtype}' is not supported: bfloat16, float16 and float32 are")
    return config


def parameters_of(c):
    """All parameters in the order of sending, so that the parts of a fused tensor are neighbours."""
    result = []

    def add(prefix, engine_name, suffix, columns, *parts):
        for name, rows, kind, units in parts:
            shape = (rows, columns) if columns else (rows,)
            result.append(Parameter(prefix + name + suffix, shape, prefix + engine_name + suffix, kind, units))

    def whole(prefix, name, suffix, rows):
        add(prefix, name, suffix, 0, (name, rows, "replicated", 1))

    padded = -(-c.vocabulary // 64) * 64
    q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    add("model.", "embed_tokens", ".weight", c.hidden, ("embed_tokens", c.vocabulary, "vocabulary", padded))
    for layer in range(c.layers):
        prefix = f"model.layers.{layer}."
        attention, mlp = prefix + "self_attn.", prefix + "mlp."
        whole(prefix, "input_layernorm", ".weight", c.hidden)
        for suffix, columns in [(".weight", c.hidden)] + [(".bias", 0)] * c.attention_bias:
            add(attention, "qkv_proj", suffix, columns, ("q_proj", q, "rows", c.heads),
                ("k_proj", kv, "kv heads", c.kv_heads), ("v_proj", kv, "kv heads", c.kv_heads))
        if c.family == "qwen3":
            whole(attention, "q_norm", ".weight", c.head_dim)
            whole(attention, "k_norm", ".weight", c.head_dim)
        add(attention, "o_proj", ".weight", q, ("o_proj", c.hidden, "columns", c.heads))
        if c.attention_bias and c.family != "qwen2":
            whole(attention, "o_proj", ".bias", c.hidden)
        whole(prefix, "post_attention_layernorm", ".weight", c.hidden)
        for suffix, columns in [(".weight", c.hidden)] + [(".bias", 0)] * c.mlp_bias:
            add(mlp, "gate_up_proj", suffix, columns, ("gate_proj", c.intermediate, "rows", c.intermediate),
                ("up_proj", c.intermediate, "rows", c.intermediate))
        add(mlp, "down_proj", ".weight", c.intermediate, ("down_proj", c.hidden, "columns", c.intermediate))
        if c.mlp_bias:
            whole(mlp, "down_proj", ".bias", c.hidden)
    whole("model.", "norm", ".weight", c.hidden)
    if not c.tied:
        add("", "lm_head", ".weight", c.hidden, ("lm_head", c.vocabulary, "vocabulary", padded))
    return result


def cut(parameter, tp, t):
    """What tp rank t holds: (dimension, start, length), the arguments of Tensor.narrow."""
    _, shape, _, kind, units = parameter
    if kind != "replicated" and (max(units, tp) % min(units, tp) if kind == "kv heads" else units % tp):
        raise Failure(CONFIG, f"{parameter.name}: {units} {kind} cannot be divided evenly for tp {tp}")
    if kind == "replicated":
        return 0, 0, shape[0]
    if kind == "columns":
        return 1, t * (shape[1] // tp), shape[1] // tp
    if kind == "vocabulary":  # padded, then cut: the last ranks may hold less, or nothing
        begin, end = (min(i * (units // tp), shape[0]) for i in (t, t + 1))
        return 0, begin, end - begin
    sharers = max(tp // units, 1) if kind == "kv heads" else 1
    length = shape[0] // (tp // sharers)
    return 0, t // sharers * length, length


def layout(parameters, tp):
    """{engine tensor: shape on a rank} and {parameter: first row in its engine tensor}."""
    shapes, first_rows = {}, {}
    for p in parameters:
        dimension, _, length = cut(p, tp, 0)
        rows = p.units // tp if p.kind == "vocabulary" else length if dimension == 0 else p.shape[0]
        first_rows[p.name] = shapes.get(p.engine_tensor, (0,))[0]
        shapes[p.engine_tensor] = (first_rows[p.name] + rows, *(length if dimension else n for n in p.shape[1:]))
    return shapes, first_rows
