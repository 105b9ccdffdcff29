#!/usr/bin/env python3
"""An oracle of plans that shares nothing with the planner: random models, source layouts, tp and dp. It makes weights
up, deals them to trainer ranks as FSDP2 and tensor-parallel trainers do, cuts them for engine ranks as vLLM and SGLang
do, and executes what the program plans, on bytes: every slot has to be as expected, and every byte of it that is no
padding written exactly once. What cannot be cut is refused. Planted defects have to be found. Only the standard library
is used.

usage: plan_oracle.py PLAN_TOOL     WEIGHTCAST_PLANS: how many plans (240)
"""
import bisect
import collections
import copy
import json
import math
import os
import random
import subprocess
import sys
import time

PLANS = int(os.environ.get("WEIGHTCAST_PLANS", "240"))
ALIGNMENT = 256
ELEMENT_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
CONFIG, BAD_DATA = 78, 65
LAYOUTS = ("whole", "fsdp", "tp", "custom")


class Uneven(Exception):
    """Something cannot be cut in that many equal parts."""


class Disagreement(Exception):
    """The program says something else."""


def agree(condition, *what):
    if not condition:
        raise Disagreement(" ".join(map(str, what)))


def align(offset):
    return -(-offset // ALIGNMENT) * ALIGNMENT


# What engine ranks hold. A matrix is a list of rows, a row its bytes; None is a row of padding.

def split(items, ways):
    if len(items) % ways:
        raise Uneven
    size = len(items) // ways
    return [items[i * size:(i + 1) * size] for i in range(ways)]


def joined(blocks):
    return [row for block in blocks for row in block]


Parameter = collections.namedtuple("Parameter", "name rows columns element cut")  # columns: none of a vector
BIASES_BY_CONFIG = ("llama", "qwen3", "smollm3", "granite", "helium", "gemma2", "gemma3_text", "olmo2", "glm", "glm4", "qwen3_moe",
                    "glm4_moe")
FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "ministral", "ministral3", "smollm3", "granite", "helium", "cwm", "gemma2",
            "gemma3_text", "olmo2", "mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3", "glm4_moe")
FAMILIES_WITH_EXPERTS = ("mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3", "glm4_moe")


class Shape:
    """A model by its config.json, with what the families' code adds to it."""

    def __init__(self, config):
        family = config["model_type"]
        self.family = family
        self.layers = config["num_hidden_layers"]
        self.hidden = config["hidden_size"]
        self.intermediate = config["intermediate_size"]
        self.vocabulary = config["vocab_size"]
        self.heads = config["num_attention_heads"]
        self.kv_heads = config.get("num_key_value_heads", self.heads)
        self.head_dim = config.get("head_dim", 256 if family.startswith("gemma") else self.hidden // self.heads)
        self.tied = config.get("tie_word_embeddings", family in ("smollm3", "gemma2", "gemma3_text"))
        asked = config.get("attention_bias", family in ("glm", "glm4")) and family in BIASES_BY_CONFIG
        self.qkv_bias = family == "qwen2" or asked or (family == "qwen2_moe" and config.get("qkv_bias", True))
        self.o_bias = asked and family not in ("helium", "glm", "glm4", "glm4_moe")
        self.mlp_bias = config.get("mlp_bias", False) and family in ("llama", "smollm3", "granite", "helium", "cwm", "deepseek_v2")
        self.head_norms = family in ("qwen3", "qwen3_moe", "gemma3_text") or (family == "glm4_moe" and config.get("use_qk_norm"))
        self.element = ELEMENT_BYTES[config.get("torch_dtype", "bfloat16")]
        self.config = config
        self.has_experts = any(map(self.experts, range(self.layers)))

    def experts(self, layer):
        """How many the layer has; 0: it is dense."""
        config = self.config
        if self.family not in FAMILIES_WITH_EXPERTS:
            return 0
        if self.family == "mixtral":
            return config["num_local_experts"]
        if self.family in ("qwen2_moe", "qwen3_moe"):
            sparse = layer not in config.get("mlp_only_layers", []) and (layer + 1) % config.get("decoder_sparse_step", 1) == 0
            return sparse and config.get("num_experts", config.get("num_local_experts"))
        first = config.get("first_k_dense_replace", {"deepseek_v2": 0, "deepseek_v3": 3, "glm4_moe": 1}[self.family])
        return layer >= first and config["n_routed_experts"]

    # How it is cut: each of these takes all rows, and returns those of tp rank t.

    def everything(self, rows, tp, t, ep):
        return rows

    def heads_by_rows(self, rows, tp, t, ep):
        """ColumnParallelLinear of whole heads."""
        return joined(split(split(rows, self.heads), tp)[t])

    def heads_by_columns(self, rows, tp, t, ep):
        """RowParallelLinear: what the rank's own heads have computed."""
        return [b"".join(split(split(row, self.heads), tp)[t]) for row in rows]

    def heads_attended(self, rows, tp, t, ep):
        """The key/value heads that the rank's query heads look at: whole groups of them, or a part of one group."""
        queries, group = split(range(self.heads), tp)[t], self.heads // self.kv_heads
        if len(queries) % group and group % len(queries):
            raise Uneven
        heads = split(rows, self.kv_heads)
        return joined(heads[head] for head in sorted({query // group for query in queries}))

    def by_rows(self, rows, tp, t, ep):
        return split(rows, tp)[t]

    def by_columns(self, rows, tp, t, ep):
        columns = split(range(len(rows[0]) // self.element), tp)[t]
        return [row[columns.start * self.element:columns.stop * self.element] for row in rows]

    def by_vocabulary(self, rows, tp, t, ep):
        """VocabParallelEmbedding: padded to a multiple of 64 before it is cut."""
        return split(rows + [None] * (-len(rows) % 64), tp)[t]

    def of_expert(self, expert, count, cut):
        """Whole experts by groups of ranks; each is cut for the ranks of its group."""
        def cut_expert(rows, tp, t, ep):
            if tp % ep:
                raise Uneven
            inner, mine = tp // ep, split(range(count), ep)[t // (tp // ep)]
            held = cut(rows, inner, t % inner, 1)
            return held if expert in mine else []
        return cut_expert

    def part(self, first, count, cut):
        """Some rows of a parameter that is fused in the checkpoint."""
        return lambda rows, tp, t, ep: cut(rows[first:first + count], tp, t, ep)

    def engine_tensors(self):
        """(name, [parameter and how it is cut]) in the order of the model."""
        def parameter(name, rows, columns, cut, element=self.element):
            return Parameter(name, rows, columns, element, cut)

        def one(name, *rest):
            return name, [parameter(name, *rest)]

        def norm(name, size=self.hidden):
            return one(f"{name}.weight", size, None, self.everything)

        yield one("model.embed_tokens.weight", self.vocabulary, self.hidden, self.by_vocabulary)
        for layer in range(self.layers):
            at = f"model.layers.{layer}."
            if self.family != "olmo2":
                yield norm(at + "input_layernorm")
            yield from (self.latent_attention if self.family.startswith("deepseek") else self.attention)(at + "self_attn.",
                                                                                                      parameter, one, norm)
            if self.family == "glm4":
                yield norm(at + "post_self_attn_layernorm")
            yield norm(at + "post_attention_layernorm")
            if self.family.startswith("gemma"):
                yield norm(at + "pre_feedforward_layernorm")
            if self.experts(layer):
                yield from self.sparse(at, self.experts(layer), parameter, one)
            else:
                yield from self.dense(at + "mlp.", self.intermediate, parameter, one)
            if self.family.startswith(("gemma", "olmo2")):
                yield norm(at + "post_feedforward_layernorm")
            if self.family == "glm4":
                yield norm(at + "post_mlp_layernorm")
        yield norm("model.norm")
        if not self.tied:
            yield one("lm_head.weight", self.vocabulary, self.hidden, self.by_vocabulary)

    def attention(self, at, parameter, one, norm):
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        for kind, columns in (("weight", self.hidden), ("bias", None)):
            if self.family == "phi3" and kind == "weight":
                name = at + "qkv_proj.weight"
                yield name, [parameter(name, q + 2 * kv, columns, self.part(first, count, cut)) for first, count, cut in
                             ((0, q, self.heads_by_rows), (q, kv, self.heads_attended), (q + kv, kv, self.heads_attended))]
            elif kind == "weight" or self.qkv_bias:
                yield f"{at}qkv_proj.{kind}", [parameter(f"{at}q_proj.{kind}", q, columns, self.heads_by_rows),
                                               parameter(f"{at}k_proj.{kind}", kv, columns, self.heads_attended),
                                               parameter(f"{at}v_proj.{kind}", kv, columns, self.heads_attended)]
        if self.head_norms or self.family == "olmo2":
            yield norm(at + "q_norm", self.head_dim if self.head_norms else q)
            yield norm(at + "k_norm", self.head_dim if self.head_norms else kv)
        yield one(at + "o_proj.weight", self.hidden, q, self.heads_by_columns)
        if self.o_bias:
            yield one(at + "o_proj.bias", self.hidden, None, self.everything)

    def latent_attention(self, at, parameter, one, norm):
        """DeepSeek's: low-rank matrices that all heads share are on every rank, what belongs to heads is cut by heads."""
        config, bias = self.config, self.config.get("attention_bias", False)
        rank, rotary, query_rank = config["kv_lora_rank"], config["qk_rope_head_dim"], config["q_lora_rank"]
        queries = self.heads * (config["qk_nope_head_dim"] + rotary)
        shared = [("kv_a_proj_with_mqa", rank + rotary)]
        if query_rank:
            shared.insert(0, ("q_a_proj", query_rank))
        else:
            yield one(at + "q_proj.weight", queries, self.hidden, self.heads_by_rows)
        for kind, columns in (("weight", self.hidden), ("bias", None)):
            if kind == "weight" or bias:
                name = "fused_qkv_a_proj_with_mqa" if query_rank else "kv_a_proj_with_mqa"
                yield f"{at}{name}.{kind}", [parameter(f"{at}{part}.{kind}", rows, columns, self.everything) for part, rows in shared]
        if query_rank:
            yield norm(at + "q_a_layernorm", query_rank)
            yield one(at + "q_b_proj.weight", queries, query_rank, self.heads_by_rows)
        yield norm(at + "kv_a_layernorm", rank)
        values = config["v_head_dim"]
        yield one(at + "kv_b_proj.weight", self.heads * (config["qk_nope_head_dim"] + values), rank, self.heads_by_rows)
        yield one(at + "o_proj.weight", self.hidden, self.heads * values, self.heads_by_columns)
        if bias:
            yield one(at + "o_proj.bias", self.hidden, None, self.everything)

    def dense(self, at, size, parameter, one):
        for kind, columns in (("weight", self.hidden), ("bias", None)):
            name = f"{at}gate_up_proj.{kind}"
            if self.family in ("phi3", "glm", "glm4") and kind == "weight":
                yield name, [parameter(name, 2 * size, columns, self.part(first, size, self.by_rows)) for first in (0, size)]
            elif kind == "weight" or self.mlp_bias:
                yield name, [parameter(f"{at}{part}_proj.{kind}", size, columns, self.by_rows) for part in ("gate", "up")]
        yield one(at + "down_proj.weight", self.hidden, size, self.by_columns)
        if self.mlp_bias:
            yield one(at + "down_proj.bias", self.hidden, None, self.everything)

    def sparse(self, at, count, parameter, one):
        config = self.config
        at += "block_sparse_moe." if self.family == "mixtral" else "mlp."
        yield one(at + "gate.weight", count, self.hidden, self.everything)
        if self.family in ("deepseek_v3", "glm4_moe"):
            yield one(at + "gate.e_score_correction_bias", count, None, self.everything, 4)
        gate, up, down = ("w1", "w3", "w2") if self.family == "mixtral" else ("gate_proj", "up_proj", "down_proj")
        size = self.intermediate if self.family == "mixtral" else config["moe_intermediate_size"]
        yield at + "experts.w13_weight", [
            parameter(f"{at}experts.{e}.{name}.weight", size, self.hidden, self.of_expert(e, count, self.by_rows))
            for e in range(count) for name in (gate, up)]
        yield at + "experts.w2_weight", [
            parameter(f"{at}experts.{e}.{down}.weight", self.hidden, size, self.of_expert(e, count, self.by_columns))
            for e in range(count)]
        if self.family == "qwen2_moe":
            yield from self.dense(at + "shared_expert.", config["shared_expert_intermediate_size"], parameter, one)
            yield one(at + "shared_expert_gate.weight", 1, self.hidden, self.everything)
        elif self.family in ("deepseek_v2", "deepseek_v3", "glm4_moe"):
            yield from self.dense(at + "shared_experts.", size * config["n_shared_experts"], parameter, one)

    def parameters(self):
        """{name: [its parts, of which there are several where the checkpoint has them fused]}"""
        parts = {}
        for _, held in self.engine_tensors():
            for part in held:
                parts.setdefault(part.name, []).append(part)
        return parts

    def can_be_cut(self, tp, ep=1):
        try:
            for parts in self.parameters().values():
                for part in parts:
                    part.cut([bytes((part.columns or 1) * part.element)] * part.rows, tp, 0, ep)
        except Uneven:
            return False
        return True


def make_weights(shape, choose):
    """{parameter: its matrix}"""
    def row(size):
        return choose.getrandbits(8 * size).to_bytes(size, "little")
    return {name: [row((part.columns or 1) * part.element) for _ in range(part.rows)]
            for name, (part, *_) in shape.parameters().items()}


Slot = collections.namedtuple("Slot", "tensors content wanted padding")  # wanted: 1 where a weight belongs


def make_slot(shape, weights, tp, t, ep):
    """Engine tensors one behind the other, the parts of each in turn, as matrices without gaps."""
    tensors, padding, content, wanted = [], [], bytearray(), bytearray()
    for name, parts in shape.engine_tensors():
        begin = align(len(content))
        content.extend(bytes(begin - len(content)))
        wanted.extend(bytes(begin - len(wanted)))
        for part in parts:
            held = part.cut(weights[part.name], tp, t, ep)
            nothing = bytes(len(held[0] or weights[part.name][0])) if held else b""
            if None in held:
                first = held.index(None)
                padding.append([len(content) + first * len(nothing), (len(held) - first) * len(nothing)])
            for row in held:
                content.extend(nothing if row is None else row)
                wanted.extend((b"\0" if row is None else b"\1") * len(row or nothing))
        tensors.append([name, begin, len(content) - begin])
    size = align(len(content))
    return Slot(tensors, content.ljust(size, b"\0"), wanted.ljust(size, b"\0"), padding)


# What trainer ranks hold.

def chunks(rows, ways):
    """torch.chunk(), and FSDP2 where there are fewer chunks than ranks."""
    size = -(-len(rows) // ways)
    result = [rows[first:first + size] for first in range(0, len(rows), size)]
    return result + [[]] * (ways - len(result))


def within(rows, element, rectangle):
    row, column, row_count, column_count = rectangle
    first, end = column * element, (column + column_count) * element
    return [content[first:end] for content in rows[row:row + row_count]]


def held_blocks(shape, weights, request, rank):
    """(parameter, block of it) in the order in which they lie in the trainer rank's region."""
    layout, trainers = request["layout"], request["trainers"]
    for name, parts in shape.parameters().items():
        rows = weights[name]
        if layout == "custom":
            mine = sorted(r[2:] for r in request["rectangles"] if r[0] == rank and r[1] == name)
            blocks = [within(rows, parts[0].element, rectangle) for rectangle in mine]
        elif layout == "fsdp":
            blocks = [chunks(rows, trainers)[rank]]
        elif layout == "tp":
            blocks = [[row for row in part.cut(rows, trainers, rank, 1) if row is not None] for part in parts]
        else:
            blocks = [rows if rank == 0 else []]
        for block in blocks:
            if block:
                yield name, block


Region = collections.namedtuple("Region", "content held")  # held: 1 where there is a weight


def make_region(shape, weights, request, rank, said, choose):
    """The trainer rank's memory, with garbage where no weight is. Holds the program's pieces against it."""
    content, held, pieces = bytearray(), bytearray(), iter(said["pieces"])
    for name, block in held_blocks(shape, weights, request, rank):
        piece = next(pieces, None)
        agree(piece is not None, "trainer rank", rank, "has", name, "too")
        agree(piece[0] == name, "trainer rank", rank, "has", name, "where", piece, "is said to be")
        said_block = within(weights[name], shape.parameters()[name][0].element, piece[1:5])
        agree(said_block == block, "trainer rank", rank, "has another part than", piece)
        agree(piece[5:] == [len(content), len(block[0])], "trainer rank", rank, piece, "begins at", len(content))
        content.extend(b"".join(block))
        held.extend(b"\1" * (len(content) - len(held)))
        gap = align(len(content)) - len(content)
        content.extend(choose.getrandbits(8).to_bytes(1, "little") * gap)
        held.extend(bytes(gap))
    agree(next(pieces, None) is None, "trainer rank", rank, "is said to have more than it has")
    agree(said["size_bytes"] == len(content), "trainer rank", rank, "has", len(content), "bytes")
    return Region(content, held)


# What the program plans.

def execute(what, moves, regions, slot):
    """Moves bytes from regions to a slot: only weights, and none to where something has been brought."""
    content, free = bytearray(len(slot.content)), bytearray(b"\1") * len(slot.content)
    for move in moves:
        source, source_offset, source_pitch, offset, pitch, size, rows = move
        agree(source < len(regions), what, move, "comes from nobody")
        region = regions[source]
        for row in range(rows):
            first, begin = source_offset + row * source_pitch, offset + row * pitch
            agree(region.held.count(1, first, first + size) == size, what, move, "takes what is no weight, in row", row)
            agree(free.count(1, begin, begin + size) == size, what, move, "brings bytes once more, in row", row)
            content[begin:begin + size] = region.content[first:first + size]
            free[begin:begin + size] = bytes(size)
    written = free.translate(bytes([1, 0]) + bytes(254))
    agree(written == slot.wanted, what, "other bytes are written than belong there")
    agree(content == slot.content, what, "the slot is wrong")


def check_walk(what, moves, trainers, tp, t):
    """From trainer rank to trainer rank, beginning with the tp rank's own share of them."""
    turns = [(move[0] - t * trainers // tp) % trainers for move in moves]
    agree(turns == sorted(turns), what, "does not go round:", turns)


def check_shares(answer):
    """Whoever has the same sends it as often as the others, or once more."""
    sent, begins = {}, []
    for rank, region in enumerate(answer["regions"]):
        begins.append([piece[5] for piece in region["pieces"]])
        for piece in region["pieces"]:
            sent.setdefault(tuple(piece[:5]), collections.Counter())[rank] = 0
    for engine in answer["ranks"]:
        for move in engine["segments"]:
            piece = answer["regions"][move[0]]["pieces"][bisect.bisect(begins[move[0]], move[1]) - 1]
            sent[tuple(piece[:5])][move[0]] += 1
    for piece, times in sent.items():
        agree(max(times.values()) - min(times.values()) <= 1, piece, "is sent unevenly:", times)


def check(request, answer, choose):
    """Raises Disagreement unless the program's plan is one that the oracle understands and expects."""
    shape, tp, ep, trainers = Shape(request["config"]), request["tp"], request.get("ep", 1), request["trainers"]
    weights = make_weights(shape, choose)
    agree("refused" not in answer, "refused:", answer)
    agree(answer["violation"] == "", "its own proof fails:", answer["violation"])
    expected = [[name, [part.rows, part.columns] if part.columns else [part.rows]]
                for name, (part, *_) in shape.parameters().items()]
    agree(answer["parameters"] == expected, "other parameters")
    agree((len(answer["ranks"]), len(answer["regions"])) == (tp, trainers), "other ranks")
    regions = [make_region(shape, weights, request, rank, said, choose) for rank, said in enumerate(answer["regions"])]
    whole = [Region(b"".join(rows), b"\1" * sum(map(len, rows))) for rows in weights.values()]
    for t, said in enumerate(answer["ranks"]):
        slot, rank = make_slot(shape, weights, tp, t, ep), f"tp rank {t}:"
        agree(answer["engine_tensors"] == slot.tensors, rank, "other engine tensors, or elsewhere:", slot.tensors)
        agree(answer["slot_bytes"] == len(slot.content), rank, "another size of slots:", len(slot.content))
        agree(said["padding"] == slot.padding, rank, "other padding:", said["padding"], slot.padding)
        agree(said["received_bytes"] == slot.wanted.count(1), rank, "other bytes received:", slot.wanted.count(1))
        execute(f"{rank} shards", said["shards"], whole, slot)
        for kind in ("segments", "whole", "single"):
            execute(f"{rank} {kind}", said[kind], regions, slot)
        if request["dp"] > 1:
            execute(f"{rank} relay", said["relay"], [Region(slot.content, slot.wanted)] * trainers, slot)
        else:
            agree(said["relay"] == [], rank, "a relay to nobody")
        for kind in ("segments", "whole", "relay"):
            check_walk(f"{rank} {kind}", said[kind], trainers, tp, t)
    check_shares(answer)


def plant(answer, element, choose):
    """The same plan with one defect; and which."""
    answer = copy.deepcopy(answer)
    rank = choose.randrange(len(answer["ranks"]))
    said = answer["ranks"][rank]
    kind = choose.choice([k for k in ("shards", "segments", "whole", "single", "relay") if said[k]])
    index = choose.randrange(len(said[kind]))
    move = said[kind][index]
    defects = ["from elsewhere", "to elsewhere", "from nobody", "missing", "twice", "a row less"]
    if move[6] > 1:
        defects += ["source pitch", "destination pitch"]
    defect = choose.choice(defects)
    if defect == "missing":
        del said[kind][index]
    elif defect == "twice":
        said[kind].insert(index, move)
    else:
        place, change = {"from elsewhere": (1, element), "to elsewhere": (3, element), "from nobody": (0, 1000),
                         "a row less": (6, -1), "source pitch": (2, element), "destination pitch": (4, element)}[defect]
        move[place] += change
    return answer, f"{kind} of tp rank {rank}, {move}: {defect}"


# What it is asked.

def random_config(choose):
    family = choose.choice(FAMILIES)
    kv_heads = choose.randint(1, 5)
    heads = kv_heads * choose.randint(1, 4)
    hidden, head_dim = choose.randint(32, 128), choose.choice((1, 2, 3, 4, 5, 8, 16))
    padded = choose.choice([n for n in range(64, 513, 64) if n % heads == 0] or [64, 320])
    config = {"model_type": family, "num_hidden_layers": choose.randint(1, 3), "hidden_size": hidden,
              "intermediate_size": heads * choose.randint(1, 8) if choose.random() < 0.8 else choose.randint(8, 160),
              "vocab_size": min(padded - choose.choice((0, choose.randrange(64))), 499), "num_attention_heads": heads,
              "torch_dtype": choose.choice(tuple(ELEMENT_BYTES))}
    if family != "qwen3" and choose.random() < 0.3:
        config["hidden_size"] = heads * math.ceil(hidden / heads)
    else:
        config["head_dim"] = head_dim
    if kv_heads != heads or choose.random() < 0.5:
        config["num_key_value_heads"] = kv_heads
    for key in ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_qk_norm", "qkv_bias"):
        if choose.random() < 0.7:
            config[key] = choose.random() < 0.5
    if family in FAMILIES_WITH_EXPERTS:
        config |= random_experts(choose, family, heads)
    return config


def random_experts(choose, family, heads):
    """What the configs of families with experts say besides."""
    count = choose.choice((1, 2, 3, 4, 6, 8))
    config = {"moe_intermediate_size": heads * choose.randint(1, 4),
              {"mixtral": "num_local_experts", "qwen2_moe": "num_experts", "qwen3_moe": choose.choice(
                  ("num_experts", "num_local_experts"))}.get(family, "n_routed_experts"): count}
    if family == "qwen2_moe":
        config["shared_expert_intermediate_size"] = heads * choose.randint(1, 4)
    if family in ("qwen2_moe", "qwen3_moe"):
        config |= choose.choice(({}, {"decoder_sparse_step": 2}, {"mlp_only_layers": [0]}))
    elif family != "mixtral":
        config |= {"n_shared_experts": choose.randint(1, 2), "first_k_dense_replace": choose.randint(0, 2)}
    if family.startswith("deepseek"):
        config |= {"q_lora_rank": choose.choice((None, choose.randint(1, 24))), "kv_lora_rank": choose.randint(1, 24),
                   "qk_nope_head_dim": choose.randint(1, 8), "qk_rope_head_dim": choose.choice((2, 4)),
                   "v_head_dim": choose.randint(1, 8)}
    return config


def cut_in_two(choose, rectangle, depth):
    """Halves of halves, of any size."""
    row, column, rows, columns = rectangle
    way = choose.choice((("rows", "columns", "not"), ("not",))[depth == 0])
    if way == "rows" and rows > 1:
        at = choose.randint(1, rows - 1)
        halves = (row, column, at, columns), (row + at, column, rows - at, columns)
    elif way == "columns" and columns > 1:
        at = choose.randint(1, columns - 1)
        halves = (row, column, rows, at), (row, column + at, rows, columns - at)
    else:
        return [rectangle]
    return [part for half in halves for part in cut_in_two(choose, half, depth - 1)]


def grid(choose, rows, columns):
    """Cut through in both ways, at random places."""
    def cuts(extent):
        inner = sorted(choose.sample(range(1, extent), min(choose.randrange(5), extent - 1)))
        return list(zip([0] + inner, inner + [extent]))
    return [(top, left, bottom - top, right - left) for top, bottom in cuts(rows) for left, right in cuts(columns)]


def random_rectangles(choose, shape, trainers):
    """Of every parameter; some are held by several trainer ranks. In any order."""
    result = []
    for name, (whole, *_) in shape.parameters().items():
        rows, columns = whole.rows, whole.columns or 1
        parts = choose.choice((lambda: cut_in_two(choose, (0, 0, rows, columns), 3), lambda: grid(choose, rows, columns)))()
        for part in parts:
            holders = choose.sample(range(trainers), choose.randint(1, trainers) if choose.random() < 0.25 else 1)
            result += [[rank, name, *part] for rank in holders]
    choose.shuffle(result)
    return result


def random_request(number, choose):
    """A request, and the exit code with which it has to be refused, or none."""
    config, layout = random_config(choose), LAYOUTS[number % len(LAYOUTS)]
    shape, refused = Shape(config), None
    possible, impossible = [], []
    for tp in range(1, 17):
        (possible if shape.can_be_cut(tp) else impossible).append(tp)
    mostly = possible[1:] if len(possible) > 1 and choose.random() < 0.9 else possible
    request = {"config": config, "layout": layout, "tp": choose.choice(mostly), "dp": choose.choice((1, 1, 2, 3)),
               "trainers": choose.choice(mostly) if layout == "tp" else choose.randint(1, 8)}
    groups = [ep for ep in range(2, request["tp"] + 1) if shape.has_experts and shape.can_be_cut(request["tp"], ep)]
    if groups and choose.random() < 0.6:
        request["ep"] = choose.choice(groups)
    if layout == "custom":
        request["rectangles"] = random_rectangles(choose, shape, request["trainers"])
    if choose.random() < 0.1:
        if layout == "custom":  # nobody has one of them
            gone = choose.choice(request["rectangles"])[1:]
            request["rectangles"] = [r for r in request["rectangles"] if r[1:] != gone]
            refused = BAD_DATA
        elif impossible:
            request["trainers" if layout == "tp" and choose.random() < 0.5 else "tp"] = choose.choice(impossible)
            refused = CONFIG
    return request, refused


def chosen_requests():
    """What random ones may miss: the same of each."""
    smollm = {"model_type": "llama", "num_hidden_layers": 1, "hidden_size": 576, "intermediate_size": 144,
              "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 570, "tie_word_embeddings": True}
    shared = {"model_type": "qwen3", "num_hidden_layers": 2, "hidden_size": 48, "intermediate_size": 64, "head_dim": 2,
              "num_attention_heads": 16, "num_key_value_heads": 2, "vocab_size": 65}
    fifths = [[rank, name, row, 0, min(116, part.rows - row), part.columns or 1] for name, (part, *_) in
              Shape(smollm).parameters().items() for rank, row in enumerate(range(0, part.rows, 116))]
    for config, layout, trainers, tp, refused in (
            (smollm, "fsdp", 5, 3, None), (smollm, "custom", 5, 9, None), (smollm, "tp", 3, 3, None),
            (smollm, "fsdp", 5, 2, CONFIG), (smollm, "tp", 2, 3, CONFIG), (shared, "fsdp", 7, 16, None),
            (shared, "tp", 16, 2, None), (shared, "tp", 2, 16, None)):
        request = {"config": config, "layout": layout, "trainers": trainers, "tp": tp, "dp": 2}
        yield (request | {"rectangles": fifths} if layout == "custom" else request), refused


def requests():
    yield from chosen_requests()
    number = 0
    while True:
        yield random_request(number, random.Random(f"plan {number}"))
        number += 1


def run(tool):
    """Plans held against the oracle, refusals, and defects found."""
    done = collections.Counter()
    for number, (request, refused) in enumerate(requests()):
        tool.stdin.write(json.dumps(request) + "\n")
        tool.stdin.flush()
        answer = json.loads(tool.stdout.readline())
        choose = random.Random(f"weights {number}")
        try:
            if refused is not None:
                agree(answer.get("refused") == refused, "not refused as it should be:", answer)
                done["refused"] += 1
                continue
            check(request, answer, choose)
            done[request["layout"]] += 1
            if number % 4 == 0:
                wrong, defect = plant(answer, Shape(request["config"]).element, choose)
                try:
                    check(request, wrong, choose)
                except Disagreement:
                    done["defects"] += 1
                else:
                    raise Disagreement("a planted defect is not found: " + defect)
        except Disagreement:
            print("request:", json.dumps(request))
            raise
        if sum(done[layout] for layout in LAYOUTS) >= PLANS:
            return done


def main():
    begin = time.time()
    with subprocess.Popen([sys.argv[1]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as tool:
        done = run(tool)
        tool.stdin.close()
    assert tool.returncode == 0
    assert all(done[layout] for layout in LAYOUTS) or PLANS < 20
    print("%d plans (%s) fill every slot as expected; %d refused, %d planted defects found; %.1f s"
          % (sum(done[layout] for layout in LAYOUTS), ", ".join(f"{done[layout]} {layout}" for layout in LAYOUTS),
             done["refused"], done["defects"], time.time() - begin))


if __name__ == "__main__":
    main()
