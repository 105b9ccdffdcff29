#include "weightcast/model/parameter_rules.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "weightcast/core/error.hpp"

namespace weightcast {
namespace {

/// The ranks that a parameter is cut over: all, or of an expert's those of the group that owns it.
struct Cutters {
  std::uint64_t count = 1, index = 0;  ///< ranks, and which of them this is
  bool holds = true;
};

Cutters cutters_of(const ParameterRule& rule, std::uint64_t tp, std::uint64_t t) noexcept {
  if (rule.experts == 0) return {tp, t, true};
  const auto count = tp / rule.ep;
  return {count, t % count, rule.expert / (rule.experts / rule.ep) == t / count};
}

bool divides(const ParameterRule& rule, std::uint64_t tp) noexcept {
  if (tp % rule.ep != 0) return false;
  const auto count = tp / rule.ep;
  switch (rule.kind) {
    case ShardKind::replicated: return true;
    case ShardKind::kv_heads:
      return std::max(rule.units, count) % std::min(rule.units, count) == 0 &&
             rule.rows % std::min(rule.units, count) == 0;
    case ShardKind::rows:
    case ShardKind::columns:
    case ShardKind::vocabulary: return rule.units % count == 0;
  }
  return false;
}

std::string_view unit_noun(const ParameterRule& rule) noexcept {
  if (rule.kind == ShardKind::kv_heads) return "key/value heads";
  if (rule.kind == ShardKind::vocabulary) return "rows (the vocabulary, padded to a multiple of 64)";
  if (rule.info.name.find("self_attn") != std::string::npos) return "attention heads";
  return rule.kind == ShardKind::columns ? "columns" : "rows";
}

bool is_block_scale(const ParameterRule& rule) noexcept {
  return rule.info.name.ends_with("_scale_inv");
}

void require_divides(const ParameterRule& rule, std::uint64_t tp) {
  WEIGHTCAST_EXPECTS(tp > 0);
  if (divides(rule, tp)) return;
  if (tp % rule.ep != 0) fail(ExitCode::config, "ep {} does not divide tp {}", rule.ep, tp);
  const auto over = rule.ep > 1 ? fmt::format("the {} ranks of a group (tp {}, ep {})", tp / rule.ep, tp, rule.ep)
                                : fmt::format("tp {}", tp);
  if (is_block_scale(rule))
    fail(ExitCode::config, "{}: {} would cut blocks of 128 {}", rule.info.name, over,
         rule.kind == ShardKind::columns ? "columns" : "rows");
  fail(ExitCode::config, "{}: {} {} cannot be divided evenly for {}", rule.info.name, rule.units, unit_noun(rule),
       over);
}

}  // namespace

std::string_view name(ShardKind kind) noexcept {
  switch (kind) {
    case ShardKind::replicated: return "replicated";
    case ShardKind::rows: return "rows";
    case ShardKind::columns: return "columns";
    case ShardKind::kv_heads: return "kv heads";
    case ShardKind::vocabulary: return "vocabulary";
  }
  return "unknown";
}

std::string_view name(Quantization quantization) noexcept {
  switch (quantization) {
    case Quantization::none: return "none";
    case Quantization::fp8_block: return "fp8-block";
    case Quantization::fp8_channel: return "fp8-channel";
  }
  return "unknown";
}

std::string scale_name(std::string_view matrix_name, Quantization quantization) {
  return fmt::format("{}{}", matrix_name, quantization == Quantization::fp8_block ? "_scale_inv" : "_scale");
}

MatrixShape matrix_of(const TensorInfo& info) noexcept {
  MatrixShape shape;
  for (std::size_t i = 0; i < info.shape.size(); ++i)
    (i == 0 || i + 1 < info.shape.size() ? shape.rows : shape.columns) *= info.shape[i];
  return shape;
}

Slice section_of(const ParameterRule& rule) noexcept {
  return {rule.row, 0, rule.rows, matrix_of(rule.info).columns};
}

std::uint64_t size_bytes_of(const ParameterRule& rule) noexcept {
  return rule.rows * matrix_of(rule.info).columns * element_bytes(rule.info.dtype);
}

std::ptrdiff_t Model::find(std::string_view name) const noexcept {
  if (config.tied_embeddings && name == "lm_head.weight") name = "model.embed_tokens.weight";
  const auto name_at = [&](std::size_t index) -> std::string_view { return parameters[index].info.name; };
  const auto found = std::ranges::lower_bound(by_name, name, {}, name_at);
  return found == by_name.end() || name_at(*found) != name ? -1 : static_cast<std::ptrdiff_t>(*found);
}

std::size_t Model::tensor_end(std::size_t parameter) const noexcept {
  auto end = parameter + 1;
  while (end < parameters.size() && parameters[end].row > 0) ++end;
  return end;
}

std::vector<std::size_t> Model::tensors() const {
  std::vector<std::size_t> result;
  for (std::size_t p = 0; p < parameters.size(); ++p) {
    if (parameters[p].row == 0) result.push_back(p);
  }
  return result;
}

std::size_t Model::tensor_count() const noexcept {
  return static_cast<std::size_t>(
      std::ranges::count_if(parameters, [](const ParameterRule& rule) { return rule.row == 0; }));
}

std::uint64_t Model::size_bytes() const noexcept {
  std::uint64_t total = 0;
  for (const auto& rule : parameters) total += size_bytes_of(rule);
  return total;
}

void index_names(Model& model) {
  model.by_name.resize(model.parameters.size());
  for (std::size_t i = 0; i < model.by_name.size(); ++i) model.by_name[i] = i;
  std::ranges::stable_sort(model.by_name, {},
                           [&](std::size_t i) -> const std::string& { return model.parameters[i].info.name; });
}

Model tensors_of(const Model& model) {
  Model result{.config = model.config, .parameters = {}, .format = model.format};
  for (const auto p : model.tensors()) {
    const auto& info = model.parameters[p].info;
    result.parameters.push_back({.info = info, .engine_tensor = info.name, .rows = matrix_of(info).rows});
  }
  index_names(result);
  return result;
}

Slice shard_of(const ParameterRule& rule, std::uint64_t tp, std::uint64_t t) {
  WEIGHTCAST_EXPECTS(t < tp);
  require_divides(rule, tp);
  const auto [count, index, holds] = cutters_of(rule, tp, t);
  const auto columns = matrix_of(rule.info).columns;
  if (!holds) return {rule.row, 0, 0, rule.kind == ShardKind::columns ? columns / count : columns};
  switch (rule.kind) {
    case ShardKind::replicated: break;
    case ShardKind::rows: return {rule.row + index * (rule.rows / count), 0, rule.rows / count, columns};
    case ShardKind::columns: return {rule.row, index * (columns / count), rule.rows, columns / count};
    case ShardKind::kv_heads: {
      const std::uint64_t sharers = count > rule.units ? count / rule.units : 1;
      const std::uint64_t shard_rows = rule.rows / (count / sharers);
      return {rule.row + index / sharers * shard_rows, 0, shard_rows, columns};
    }
    case ShardKind::vocabulary: {
      const std::uint64_t begin = std::min(index * (rule.units / count), rule.rows);
      return {begin, 0, std::min((index + 1) * (rule.units / count), rule.rows) - begin, columns};
    }
  }
  return section_of(rule);
}

MatrixShape shard_extent(const ParameterRule& rule, std::uint64_t tp, std::uint64_t t) {
  const Slice shard = shard_of(rule, tp, t);
  return {rule.kind == ShardKind::vocabulary ? rule.units / tp : shard.rows, shard.columns};
}

std::uint64_t holders_of(const ParameterRule& rule, std::uint64_t tp) noexcept {
  const auto count = tp / rule.ep;
  if (rule.kind == ShardKind::replicated) return count;
  return rule.kind == ShardKind::kv_heads && count > rule.units ? count / rule.units : 1;
}

std::vector<std::uint64_t> possible_tp(const Model& model) {
  std::vector<std::uint64_t> result;
  for (std::uint64_t tp = 1; tp <= model.config.heads; ++tp) {
    if (model.config.heads % tp == 0 && std::all_of(model.parameters.begin(), model.parameters.end(),
                                                    [&](const auto& rule) { return divides(rule, tp); })) {
      result.push_back(tp);
    }
  }
  return result;
}

bool is_copy(const ParameterRule& rule, std::uint64_t tp, std::uint64_t t) noexcept {
  const auto cutters = cutters_of(rule, tp, t);
  return cutters.holds && cutters.index % holders_of(rule, tp) != 0;
}

std::vector<std::size_t> sample_parameters(const Model& model) {
  constexpr const char* in_layers[] = {
      "input_layernorm.weight",  "self_attn.q_proj.weight", "self_attn.k_proj.weight",
      "self_attn.v_proj.weight", "self_attn.o_proj.weight", "mlp.gate_proj.weight",
      "mlp.up_proj.weight",      "mlp.down_proj.weight",    "post_attention_layernorm.weight"};
  std::vector<std::size_t> result;
  const auto add = [&](std::string_view name) {
    if (const auto index = model.find(name); index >= 0) result.push_back(static_cast<std::size_t>(index));
  };
  add("model.embed_tokens.weight");
  std::uint64_t layer = 0;
  for (const char* suffix : in_layers)
    add(fmt::format("model.layers.{}.{}", std::min(layer++, model.config.layers - 1), suffix));
  // Of others than Llama, in the place of what they do not have: experts, and tensors from all over the model.
  const auto expert = std::ranges::find_if(model.parameters, [](const auto& rule) { return rule.experts > 0; });
  if (expert != model.parameters.end()) add(expert->info.name);
  const auto tensors = model.tensors();
  for (std::size_t i = 1; result.size() < 10 && i < tensors.size(); ++i) {
    const auto candidate = tensors[i * (tensors.size() / 2 | 1) % tensors.size()];
    if (std::ranges::find(result, candidate) == result.end()) result.push_back(candidate);
  }
  add("model.norm.weight");
  add("lm_head.weight");
  return result;
}

}  // namespace weightcast
