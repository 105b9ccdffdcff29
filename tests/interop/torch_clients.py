#!/usr/bin/env python3
"""The PyTorch examples as they are, with a small random Llama: loss falls, every update arrives, logits are those of a
fresh load to the last bit, whether all was sent or what changed. Exit code 77: this Python lacks a package.

usage: python3 torch_clients.py MPIEXEC EXAMPLE_ENGINE
"""

import json
import pathlib
import re
import subprocess
import sys
import tempfile

try:
    import mpi4py  # noqa: F401
    import safetensors.torch  # noqa: F401
    import torch
    import transformers
except ImportError as error:
    print(f"skipped: {error} (WEIGHTCAST_TORCH_PYTHON in tests/README.md names a Python that has it)")
    sys.exit(77)

EXAMPLES = pathlib.Path(__file__).resolve().parents[2] / "apps/examples"
sys.path.insert(0, str(EXAMPLES))
from demo_text import SPACE, TEXT  # noqa: E402

STEPS = 4
LARGE, SMALL = "3e-3", "1e-6"  # learning rates: steps that change nearly everything, and a few percent


def make_model(folder):
    """A checkpoint of random weights, and a vocabulary that has the words of the text."""
    words = TEXT.split()
    tokens = dict.fromkeys([words[0], ",", ".", *(SPACE + word for word in words)])
    (folder / "vocab.json").write_text(json.dumps(
        {token: index for index, token in enumerate([*tokens, *(f"<{i}>" for i in range(200 - len(tokens)))])}))
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=200, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, tie_word_embeddings=True, bos_token_id=0, eos_token_id=1, pad_token_id=1)
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def run(rate, trainer, *engine, ranks=1):
    program = "torch_trainer.py" if ranks == 1 else "fsdp_trainer.py"
    command = [sys.argv[1], "--oversubscribe", "-n", str(ranks), sys.executable, "-m", "mpi4py", f"{EXAMPLES}/{program}",
               *trainer, "--steps", str(STEPS), "--learning-rate", rate, ":", *engine]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=200)
    print(result.stdout)
    assert result.returncode == 0, result.returncode
    rows = re.findall(r"^ +(\d+) +(\d+\.\d+) .* ([0-9a-f]{32})$", result.stdout, re.MULTILINE)
    assert [int(row[0]) for row in rows] == list(range(1, STEPS + 1)), rows
    losses, digests = [float(row[1]) for row in rows], [row[2] for row in rows]
    assert losses[-1] < losses[0], losses
    assert len(set(digests)) == STEPS, digests
    payloads = re.findall(r"^ +\d+ +\d+\.\d+ .* (dense|delta) \d", result.stdout, re.MULTILINE)
    assert payloads == ["dense"] + ["delta" if rate == SMALL else "dense"] * (STEPS - 1), payloads
    return result.stdout, digests


with tempfile.TemporaryDirectory() as folder:
    make_model(pathlib.Path(folder))
    output, digests = run(LARGE, [folder, "--prove"], "-n", "1", sys.executable, "-m", "mpi4py", f"{EXAMPLES}/torch_engine.py",
                          folder, "--prove", "--tokens", "2")
    for version in range(1, STEPS + 1):
        assert re.search(rf"version {version}, (?:dense|delta), .*max difference from a fresh load 0:", output), version
    output, digests = run(SMALL, [folder, "--trainers", "2", "--prove"], "-n", "1", sys.executable, "-m", "mpi4py",
                          f"{EXAMPLES}/torch_engine.py", folder, "--trainers", "2", "--prove", "--tokens", "2", ranks=2)
    for version in range(1, STEPS + 1):
        assert re.search(rf"version {version}, (?:dense|delta), .*max difference from a fresh load 0:", output), version
    output, digests = run(SMALL, [folder], "-n", "2", sys.argv[2], folder)
    for version, digest in enumerate(digests, 1):
        assert re.search(rf"version {version} \((?:dense|delta)\) served in .* verified: {digest}", output), version
