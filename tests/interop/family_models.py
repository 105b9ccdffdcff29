"""Small random checkpoints of every family, written by transformers; for tests. Exit code 77: this Python lacks a package."""

import json
import sys

try:
    import h5py
    import numpy as np
    import torch
    import transformers
    from safetensors import safe_open
    from safetensors.torch import save_file
except ImportError as error:
    print(f"skipped: {error} (WEIGHTCAST_TORCH_PYTHON in tests/README.md names a Python that has it)")
    sys.exit(77)

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

BASE = dict(vocab_size=203, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=8, num_key_value_heads=2,
            bos_token_id=0, eos_token_id=1, pad_token_id=1, max_position_embeddings=256)
WIDE = dict(head_dim=24)  # heads that together are wider than the hidden size
BIASES = dict(attention_bias=True, mlp_bias=True)
TIED, UNTIED = dict(tie_word_embeddings=True), dict(tie_word_embeddings=False)
SLIDING = dict(head_dim=16, sliding_window=8, query_pre_attn_scalar=16,
               layer_types=["sliding_attention", "full_attention", "sliding_attention"])
SPARSE = dict(moe_intermediate_size=32, num_experts_per_tok=2)
QWEN2_MOE = dict(**SPARSE, num_experts=8, shared_expert_intermediate_size=48)
QWEN3_MOE = dict(**SPARSE, **WIDE, num_experts=8)
MLA = dict(**SPARSE, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=12, v_head_dim=20, num_key_value_heads=8,
           n_routed_experts=8, first_k_dense_replace=1)
GLM4_MOE = dict(**SPARSE, head_dim=16, n_routed_experts=8, first_k_dense_replace=1)
GPT_OSS = dict(head_dim=16, num_local_experts=8, num_experts_per_tok=2, intermediate_size=32, sliding_window=8)
VISION = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=4)

# What a model's classes are called without their ending, and what its config says besides BASE.
DENSE = {
    **{f"{name} {label}": (stem, {**(dict(head_dim=8) if stem == "Helium" else WIDE), **keys})
       for name, stem in (("llama", "Llama"), ("qwen2", "Qwen2"), ("qwen3", "Qwen3"), ("mistral", "Mistral"),
                          ("ministral", "Ministral"), ("ministral3", "Ministral3"), ("smollm3", "SmolLM3"),
                          ("granite", "Granite"), ("helium", "Helium"), ("cwm", "Cwm"))
       for label, keys in (("untied", UNTIED), ("tied", TIED), ("biases", UNTIED | BIASES))},
    "gemma2 tied": ("Gemma2", SLIDING | TIED),
    "gemma2 untied": ("Gemma2", SLIDING | UNTIED),
    "gemma2 biases": ("Gemma2", SLIDING | BIASES),
    "gemma3 tied": ("Gemma3Text", SLIDING | TIED),
    "gemma3 untied": ("Gemma3Text", SLIDING | UNTIED),
    "gemma3 biases": ("Gemma3Text", SLIDING | BIASES),
    "gemma tied": ("Gemma", WIDE | TIED),
    "gemma untied, biases": ("Gemma", WIDE | UNTIED | BIASES),
    "ernie4_5 tied": ("Ernie4_5", WIDE | TIED),
    "ernie4_5 untied, biases": ("Ernie4_5", WIDE | UNTIED | dict(use_bias=True)),
    "seed_oss untied": ("SeedOss", WIDE | UNTIED),
    "seed_oss tied, other biases": ("SeedOss", WIDE | TIED | dict(attention_bias=False, attention_out_bias=True, mlp_bias=True)),
    "exaone4 untied": ("Exaone4", dict(sliding_window=8, sliding_window_pattern=2, **UNTIED)),
    "exaone4 tied": ("Exaone4", dict(sliding_window=8, sliding_window_pattern=2, **TIED)),
    "phi3 untied": ("Phi3", UNTIED),
    "phi3 tied": ("Phi3", TIED),
    "phi3 without groups": ("Phi3", dict(num_key_value_heads=None)),
    "olmo2 untied": ("Olmo2", UNTIED),
    "olmo2 tied, biases": ("Olmo2", TIED | BIASES),
    "olmo3 untied": ("Olmo3", UNTIED),
    "olmo3 tied, biases": ("Olmo3", TIED | BIASES),
    "glm untied": ("Glm", WIDE | UNTIED),
    "glm tied, no biases": ("Glm", WIDE | TIED | dict(attention_bias=False)),
    "glm4 untied": ("Glm4", WIDE | UNTIED | dict(attention_bias=False)),
    "glm4 tied, biases": ("Glm4", WIDE | TIED | dict(attention_bias=True)),
}
EXPERTS = {
    "mixtral untied": ("Mixtral", dict(num_local_experts=8, intermediate_size=32)),
    "mixtral tied": ("Mixtral", dict(num_local_experts=8, intermediate_size=32, **WIDE, **TIED)),
    "qwen2_moe untied": ("Qwen2Moe", QWEN2_MOE),
    "qwen2_moe every other layer": ("Qwen2Moe", QWEN2_MOE | dict(decoder_sparse_step=2)),
    "qwen2_moe tied, layer 1 dense, no biases": ("Qwen2Moe", QWEN2_MOE | TIED | dict(mlp_only_layers=[1], qkv_bias=False)),
    "qwen3_moe untied": ("Qwen3Moe", QWEN3_MOE),
    "qwen3_moe tied, every other layer, biases": ("Qwen3Moe", QWEN3_MOE | TIED | BIASES | dict(decoder_sparse_step=2)),
    "qwen3_moe layer 0 dense": ("Qwen3Moe", QWEN3_MOE | dict(mlp_only_layers=[0])),
    "deepseek_v2 whole queries": ("DeepseekV2", MLA | dict(q_lora_rank=None, n_shared_experts=2)),
    "deepseek_v2 low-rank queries": ("DeepseekV2", MLA | dict(q_lora_rank=24, n_shared_experts=1)),
    "deepseek_v2 tied, biases": ("DeepseekV2", MLA | TIED | BIASES | dict(q_lora_rank=24, n_shared_experts=1,
                                                                         first_k_dense_replace=0)),
    "deepseek_v3 low-rank queries": ("DeepseekV3", MLA | dict(q_lora_rank=24, n_shared_experts=1, n_group=2, topk_group=1)),
    "deepseek_v3 whole queries": ("DeepseekV3", MLA | dict(q_lora_rank=None, n_shared_experts=2, n_group=2, topk_group=1)),
    "deepseek_v3 tied, biases": ("DeepseekV3", MLA | TIED | dict(q_lora_rank=24, n_shared_experts=1, n_group=2, topk_group=1,
                                                                 attention_bias=True)),
    "glm4_moe biases": ("Glm4Moe", GLM4_MOE | dict(n_shared_experts=1, attention_bias=True)),
    "glm4_moe biases, norms of heads": ("Glm4Moe", GLM4_MOE | dict(n_shared_experts=1, attention_bias=True, use_qk_norm=True)),
    "glm4_moe tied, all sparse": ("Glm4Moe", GLM4_MOE | TIED | dict(n_shared_experts=2, first_k_dense_replace=0)),
    "glm4_moe_lite low-rank queries": ("Glm4MoeLite", {key: value for key, value in MLA.items() if key != "first_k_dense_replace"}
                                       | dict(q_lora_rank=24, n_shared_experts=1, mlp_layer_types=["dense", "sparse", "sparse"])),
    "dots1 untied": ("Dots1", GLM4_MOE | dict(n_shared_experts=2)),
    "dots1 tied, biases": ("Dots1", GLM4_MOE | TIED | BIASES | dict(n_shared_experts=1)),
    "olmoe untied": ("Olmoe", dict(num_experts=8, num_experts_per_tok=2, intermediate_size=32)),
    "olmoe tied, biases": ("Olmoe", dict(num_experts=8, num_experts_per_tok=2, intermediate_size=32, **TIED, **BIASES)),
    "gpt_oss untied": ("GptOss", GPT_OSS),
    "gpt_oss tied, no biases": ("GptOss", GPT_OSS | TIED | dict(attention_bias=False)),
}
MULTIMODAL = {
    "gemma3 with vision, tied": ("Gemma3", "siglip_vision_model", dict(model_type="gemma3_text", **SLIDING), TIED),
    "gemma3 with vision, untied": ("Gemma3", "siglip_vision_model", dict(model_type="gemma3_text", **SLIDING), UNTIED),
    "mistral3 with vision, tied by its own config": ("Mistral3", "pixtral", dict(model_type="mistral", **WIDE, **UNTIED), TIED),
    "llava of llama, untied by its own config": ("Llava", "clip_vision_model", dict(model_type="llama", **TIED), UNTIED),
    "mistral3 with vision": ("Mistral3", "pixtral", dict(model_type="mistral", **WIDE), UNTIED),
    "mistral3 with vision, ministral3, tied": ("Mistral3", "pixtral", dict(model_type="ministral3", **WIDE), TIED),
    "llava of llama": ("Llava", "clip_vision_model", dict(model_type="llama"), UNTIED),
    "llava of qwen2": ("Llava", "clip_vision_model", dict(model_type="qwen2"), UNTIED),
}
VARIANTS = {**DENSE, **EXPERTS, **MULTIMODAL}


def forms(variant):
    """In which forms checkpoints of it are found: transformers keeps some routers in F32, the Hub has them in BF16, and layers
    that predict further tokens besides; multimodal models are saved under other names than they have in memory."""
    if variant in MULTIMODAL:
        return "as saved", "names as in memory"
    if variant.startswith(("deepseek_v2", "dots1")):
        return "routers in F32", "routers in BF16"
    if variant.startswith(("deepseek_v3", "glm4_moe")):
        return "routers in F32", "routers in BF16", "routers in BF16, a layer more"
    return ("as saved",)


def make_model(variant, seed, form):
    """A model in bf16, in which no parameters are alike, norms and biases included."""
    if variant in MULTIMODAL:
        stem, tower, text, tied = MULTIMODAL[variant]
        vision = VISION | {"model_type": tower} | ({"vision_use_head": False} if stem == "Gemma3" else {})
        config = getattr(transformers, stem + "Config")(text_config=BASE | tied | text, vision_config=vision, **tied)
        if stem == "Gemma3":
            config.mm_tokens_per_image = 4
        model = getattr(transformers, stem + "ForConditionalGeneration")._from_config(config, dtype=torch.bfloat16)
    else:
        stem, keys = VARIANTS[variant]
        config = getattr(transformers, stem + "Config")(**BASE | keys)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict(keep_vars=True).items():
            tensor.normal_(std=0.2)
            if name.endswith("mlp.gate.weight") and "BF16" in form:
                tensor.data = tensor.data.to(torch.bfloat16)
    return model


def add_layer(folder, layer):
    """One more, for predicting further tokens, in a file of its own: as layer `layer` - 1, with a way in and out."""
    tensors = {name.replace(f".{layer - 1}.", f".{layer}.", 1): tensor for name, tensor in read_tensors(folder).items()
               if name.startswith(f"model.layers.{layer - 1}.")}
    hidden = len(tensors[f"model.layers.{layer}.input_layernorm.weight"])
    for name, shape in (("embed_tokens", (203, hidden)), ("enorm", (hidden,)), ("hnorm", (hidden,)),
                        ("eh_proj", (hidden, 2 * hidden)), ("shared_head.norm", (hidden,)), ("shared_head.head", (203, hidden))):
        tensors[f"model.layers.{layer}.{name}.weight"] = torch.ones(shape, dtype=torch.bfloat16)
    save_file(tensors, folder / "more.safetensors", metadata={"format": "pt"})
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"].update(dict.fromkeys(tensors, "more.safetensors"))
    path.write_text(json.dumps(index))


def make_checkpoint(variant, seed, form, folder):
    """In shards, as large models are; its config leaves out what is said by default, as some versions of transformers do.
    What the config says of the text model."""
    model = make_model(variant, seed, form)
    model.save_pretrained(folder, max_shard_size="60KB")
    path = folder / "config.json"
    keys = json.loads(path.read_text())
    if form == "names as in memory":
        for old in folder.glob("model*"):
            old.unlink()
        aliases = [] if "lm_head.weight" in dict(model.named_parameters()) else ["lm_head.weight"]
        save_file({name: tensor for name, tensor in model.state_dict().items() if name not in aliases},
                  folder / "model.safetensors", metadata={"format": "pt"})
    if form.endswith("a layer more"):
        add_layer(folder, keys["num_hidden_layers"])
    if keys.get("tie_word_embeddings") == type(model.config)().tie_word_embeddings and "text_config" not in keys:
        del keys["tie_word_embeddings"]
        path.write_text(json.dumps(keys))
    return keys.get("text_config", keys)


def read_tensors(folder):
    """{name: torch tensor} of a checkpoint."""
    tensors = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            tensors.update((name, file.get_tensor(name)) for name in file.keys())
    return tensors


def bits(tensor):
    """As numpy integers: -0 equals 0, and no number equals NaN."""
    return tensor.contiguous().view({2: torch.int16, 4: torch.int32}[tensor.element_size()]).numpy()


def text_name(name):
    """A name in a checkpoint as that of a text model's parameter; nothing for other towers and for layers more."""
    if name.startswith(("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.",
                        f"model.layers.{BASE['num_hidden_layers']}.")):
        return None
    return name.removeprefix("language_model.").replace("model.language_model.", "model.")


def text_tensors(folder, routers=None):
    """The text model's tensors under its names; `routers`: the dtype of engines', of which no checkpoint says another."""
    return {text: tensor.to(routers) if routers and text.endswith("mlp.gate.weight") else tensor
            for name, tensor in read_tensors(folder).items() if (text := text_name(name))}


def read_snapshot(path):
    """The parameters, from their bits."""
    tensors = {}
    with h5py.File(path, "r") as file:
        for name, dataset in file["parameters"].items():
            kind = dataset.id.get_type()
            held = np.zeros(dataset.shape, dtype=f"V{kind.get_size()}")
            dataset.id.read(h5py.h5s.ALL, h5py.h5s.ALL, held, mtype=kind)
            said = dataset.attrs["dtype"]
            dtype = {"BF16": torch.bfloat16, "F32": torch.float32}[said.decode() if isinstance(said, bytes) else said]
            tensors[name] = torch.frombuffer(bytearray(held.tobytes()), dtype=dtype).reshape(dataset.shape)
    return tensors


def load(folder):
    """The model of a checkpoint, and what was missing or left over."""
    keys = json.loads((folder / "config.json").read_text())
    model, report = getattr(transformers, keys["architectures"][0]).from_pretrained(
        folder, dtype=torch.bfloat16, attn_implementation="eager", output_loading_info=True)
    problems = {key: value for key, names in report.items() if (value := list(filter(text_name, names)))}
    assert not problems, problems
    return model.eval()


def logits(model):
    with torch.no_grad():
        return model(torch.arange(1, 41).reshape(2, 20) * 5 % 199).logits
