"""What the engine ranks hold of a checkpoint, worked out with numpy from its tensors alone: fused, cut by tensor-parallel and
by expert-parallel ranks, padded, as vLLM and SGLang hold it. Shares nothing with the library; imported by tests.
"""
import re

import numpy as np

REPLICATED = re.compile(
    r"(input|post_attention|pre_feedforward|post_feedforward|post_self_attn|post_mlp|q_a|kv_a|query|key)_layernorm\.weight$"
    r"|^model\.norm\.weight$|self_attn\.[qk]_norm\.weight$|(o_proj|down_proj)\.bias$|(mlp|block_sparse_moe)\.gate\.weight$"
    r"|e_score_correction_bias$|shared_expert_gate\.weight$|mlp\.router\.(weight|bias)$")
VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")


def split(array, ways, axis=0):
    assert array.shape[axis] % ways == 0, (array.shape, ways, axis)
    return np.split(array, ways, axis)


class Rank:
    """Rank `rank` of an engine of `tp` ranks, in `ep` groups that share the experts out."""

    def __init__(self, config, tp, ep, rank):
        assert tp % ep == 0 and rank < tp
        self.tp, self.ep, self.rank = tp, ep, rank
        self.heads = config["num_attention_heads"]
        self.kv_heads = config.get("num_key_value_heads") or self.heads

    def rows(self, array):
        return split(array, self.tp)[self.rank]

    def columns(self, array):
        return split(array, self.tp, axis=-1)[self.rank]

    def heads_by_rows(self, array):
        assert self.heads % self.tp == 0 and array.shape[0] % self.heads == 0
        return self.rows(array)

    def attended(self, array):
        """The key/value heads that the rank's query heads look at."""
        first = self.rank * self.heads // self.tp
        group = self.heads // self.kv_heads
        wanted = sorted({query // group for query in range(first, first + self.heads // self.tp)})
        return np.concatenate([split(array, self.kv_heads)[head] for head in wanted])

    def vocabulary(self, array):
        padding = np.zeros((-len(array) % 64, array.shape[1]), array.dtype)
        return self.rows(np.concatenate([array, padding]))

    def experts(self, count):
        """Which of them, and how each is cut: (indices, ways, which of them)."""
        inner = self.tp // self.ep
        each = count // self.ep
        assert count % self.ep == 0
        first = self.rank // inner * each
        return range(first, first + each), inner, self.rank % inner

    def qkv(self, q, k, v):
        return np.concatenate([self.heads_by_rows(q), self.attended(k), self.attended(v)])

    def gate_up(self, gate, up):
        return np.concatenate([self.rows(gate), self.rows(up)])

    def separate_experts(self, tensors, at, names):
        """w13 and w2 of experts that the checkpoint has one by one, as matrices; `names`: of gate, up and down."""
        count = len({name for name in tensors if re.match(re.escape(at) + r"\.\d+\." + names[0] + r"\.weight$", name)})
        mine, ways, index = self.experts(count)
        w13, w2 = [], []
        for expert in mine:
            gate, up, down = (tensors[f"{at}.{expert}.{name}.weight"] for name in names)
            w13.append(np.concatenate([split(gate, ways)[index], split(up, ways)[index]]))
            w2.append(split(down, ways, axis=1)[index])
        yield f"{at}.w13_weight", np.stack(w13)
        yield f"{at}.w2_weight", np.stack(w2)

    def joined_experts(self, tensors, at):
        """The same of gpt-oss, whose checkpoint has all experts in one tensor, with inputs as rows, and gates and ups in turn."""
        mine, ways, index = self.experts(len(tensors[f"{at}.gate_up_proj"]))
        mine = slice(mine.start, mine.stop)
        yield f"{at}.w13_weight", split(tensors[f"{at}.gate_up_proj"][mine], ways, axis=2)[index]
        yield f"{at}.w13_weight_bias", split(tensors[f"{at}.gate_up_proj_bias"][mine], ways, axis=1)[index]
        yield f"{at}.w2_weight", split(tensors[f"{at}.down_proj"][mine], ways, axis=1)[index]
        yield f"{at}.w2_weight_bias", tensors[f"{at}.down_proj_bias"][mine]


def engine_tensors(config, tensors, tp, ep, rank):
    """{engine tensor: array} of one rank. `tensors`: the checkpoint's, by name; `config`: of the text model."""
    me, held, used = Rank(config, tp, ep, rank), {}, set()

    def take(*names):
        used.update(names)
        return [tensors[name] for name in names]

    for name, array in tensors.items():
        if name in used:
            continue
        parent, module, kind = (["", *name.rsplit(".", 2)])[-3:]
        at = f"{parent}.{module}".lstrip(".")
        expert = re.match(r"(.*\.experts)\.\d+\.(w1|w2|w3|gate_proj|up_proj|down_proj)\.weight$", name)
        if expert:
            names = ("w1", "w3", "w2") if expert[2].startswith("w") else ("gate_proj", "up_proj", "down_proj")
            held.update(me.separate_experts(tensors, expert[1], names))
            used.update(other for other in tensors if other.startswith(expert[1] + "."))
        elif module == "experts":
            held.update(me.joined_experts(tensors, at))
            used.update(other for other in tensors if other.startswith(at + "."))
        elif name in VOCABULARY:
            held[name] = me.vocabulary(array)
        elif module in ("q_proj", "k_proj", "v_proj") and f"{parent}.k_proj.{kind}" in tensors:
            held[f"{parent}.qkv_proj.{kind}"] = me.qkv(*take(*(f"{parent}.{part}_proj.{kind}" for part in "qkv")))
        elif module == "qkv_proj":
            kv = len(array) // (me.heads + 2 * me.kv_heads) * me.kv_heads
            held[name] = me.qkv(*np.split(array, [len(array) - 2 * kv, len(array) - kv]))
        elif module in ("q_proj", "q_b_proj", "kv_b_proj"):
            held[name] = me.heads_by_rows(array)
        elif module in ("q_a_proj", "kv_a_proj_with_mqa"):
            parts = [f"{parent}.{part}.{kind}" for part in ("q_a_proj", "kv_a_proj_with_mqa")]
            if parts[0] in tensors:
                held[f"{parent}.fused_qkv_a_proj_with_mqa.{kind}"] = np.concatenate(take(*parts))
            else:
                held[name] = array
        elif kind == "sinks":
            held[name] = me.heads_by_rows(array)
        elif module in ("gate_proj", "up_proj"):
            held[f"{parent}.gate_up_proj.{kind}"] = me.gate_up(*take(*(f"{parent}.{p}_proj.{kind}" for p in ("gate", "up"))))
        elif module == "gate_up_proj":
            held[name] = me.gate_up(*split(array, 2))
        elif module in ("o_proj", "down_proj") and kind == "weight":
            held[name] = me.columns(array)
        else:
            assert REPLICATED.search(name), f"the oracle does not know {name}"
            held[name] = array
        used.add(name)
    return held
