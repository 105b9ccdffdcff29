#!/usr/bin/env python3
"""Every family as transformers has it: a small random checkpoint goes through `weightcast update`, and the snapshot of what the
engines then hold gives a model whose logits are those of a fresh load to the last bit. Tied and untied, with the biases that
the config can ask for, an odd vocabulary, tp 1 and 2. Exit code 77: this Python lacks a package.

usage: python3 torch_families.py MPIEXEC WEIGHTCAST [FAMILY ...]
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

try:
    import h5py
    import numpy
    import torch
    import transformers
except ImportError as error:
    print(f"skipped: {error}; this needs torch, transformers and h5py")
    sys.exit(77)

FAMILIES = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3", "mistral": "Mistral", "ministral": "Ministral",
            "ministral3": "Ministral3", "smollm3": "SmolLM3", "granite": "Granite", "helium": "Helium", "cwm": "Cwm"}
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("WEIGHTCAST_")}


def make_model(family, folder, tied, biases):
    """A checkpoint in which no parameters are alike, norms and biases included; its config leaves a default out."""
    configs, models = (getattr(transformers, FAMILIES[family] + kind) for kind in ("Config", "ForCausalLM"))
    wide = {} if family == "helium" else {"head_dim": 24}  # Helium's o_proj is hidden x hidden
    config = configs(**{"vocab_size": 203, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "head_dim": 16,
                        "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": tied, "bos_token_id": 0,
                        "eos_token_id": 1, "pad_token_id": 1, "attention_bias": biases, "mlp_bias": biases, **wide})
    torch.manual_seed(sorted(FAMILIES).index(family))
    model = models(config).to(torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    model.save_pretrained(folder)
    path = folder / "config.json"
    keys = json.loads(path.read_text())
    assert keys["model_type"] == family and keys["architectures"] == [FAMILIES[family] + "ForCausalLM"], keys
    if keys.get("tie_word_embeddings") == configs().tie_word_embeddings:
        del keys["tie_word_embeddings"]  # as some versions of transformers do
        path.write_text(json.dumps(keys))
    return models


def read_snapshot(path):
    """The parameters, from their bits."""
    tensors = {}
    with h5py.File(path, "r") as file:
        for name, dataset in file["parameters"].items():
            bits = numpy.zeros(dataset.shape, dtype="V2")
            dataset.id.read(h5py.h5s.ALL, h5py.h5s.ALL, bits, mtype=dataset.id.get_type())
            tensors[name] = torch.frombuffer(bytearray(bits.tobytes()), dtype=torch.bfloat16).reshape(dataset.shape)
    return tensors


def logits(model):
    with torch.no_grad():
        return model.eval()(torch.arange(1, 41).reshape(2, 20) * 5 % 203).logits


def check(family, folder, tied, biases):
    models = make_model(family, folder, tied, biases)
    fresh = models.from_pretrained(folder, dtype=torch.bfloat16)
    parameters = dict(fresh.named_parameters())  # an alias is not among them
    wanted = logits(fresh)
    assert wanted.isfinite().all() and wanted.std() > 0
    for tp in (1, 2):
        snapshot = folder / f"tp{tp}.h5"
        done = subprocess.run([sys.argv[1], "--oversubscribe", "-n", str(1 + tp), sys.argv[2], "update", "--initial", "synth:7",
                               "--target", str(folder), "--tp", str(tp), "--device", "host", "--snapshot", str(snapshot)],
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, env=ENVIRONMENT)
        assert done.returncode == 0, done.stdout
        held = read_snapshot(snapshot)
        assert held.keys() == parameters.keys(), held.keys() ^ parameters.keys()
        for name, tensor in held.items():  # bits: -0 equals 0
            assert torch.equal(tensor.view(torch.int16), parameters[name].data.view(torch.int16)), name
        model = models.from_pretrained(folder, dtype=torch.bfloat16)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(float("nan"))
        missing, unexpected = model.load_state_dict(held, strict=False)
        assert not unexpected and missing == (["lm_head.weight"] if tied else []), (missing, unexpected)
        assert torch.equal(logits(model), wanted), f"{family}: the logits differ"
    return len(parameters)


for chosen in sys.argv[3:] or FAMILIES:
    for tied, biases in ((False, False), (True, False), (False, True)):
        with tempfile.TemporaryDirectory() as folder:
            count = check(chosen, pathlib.Path(folder), tied, biases)
        print(f"{chosen}: {count} parameters, {'tied' if tied else 'untied'}, {'biases asked for' if biases else 'no biases'}: "
              "logits of a fresh load at tp 1 and 2", flush=True)
