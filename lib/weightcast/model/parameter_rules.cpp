#include "weightcast/model/parameter_rules.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <initializer_list>

#include "weightcast/core/bytes.hpp"
#include "weightcast/core/error.hpp"

namespace weightcast {
namespace {

constexpr std::uint64_t vocabulary_unit = 64;
// Some trillion parameters. A plan grows with a model's bytes, so a mistyped shape must not take all memory.
constexpr std::uint64_t model_limit_bytes = std::uint64_t{1} << 42;

/// A parameter to be, without what it shares with its neighbours.
struct Part {
  const char* name;
  std::uint64_t rows;
  ShardKind kind = ShardKind::replicated;
  std::uint64_t units = 0;
};

class Builder {
 public:
  explicit Builder(const ModelConfig& config) { model_.config = config; }

  /// Adds parameters `prefix``part.name``suffix`, fused into `prefix``engine_name``suffix`, of `columns` columns (0:
  /// none).
  void add(const std::string& prefix, const std::string& suffix, std::uint64_t columns, std::string_view engine_name,
           std::initializer_list<Part> parts) {
    std::uint32_t position = 0;
    for (const Part& part : parts) {
      std::vector<std::uint64_t> shape{part.rows};
      if (columns > 0) shape.push_back(columns);
      ParameterRule rule{{prefix + part.name + suffix, model_.config.dtype, std::move(shape)},
                         fmt::format("{}{}{}", prefix, engine_name, suffix),
                         position++,
                         part.kind,
                         part.units};
      const auto bytes = rule.info.size_bytes();
      if (!bytes || *bytes > model_limit_bytes || (total_ += *bytes) > model_limit_bytes) {
        fail(ExitCode::config, "{}: the model is larger than {}", rule.info.name, format_size(model_limit_bytes));
      }
      model_.parameters.push_back(std::move(rule));
    }
  }
  /// Adds a parameter that is its own engine tensor.
  void add(const std::string& prefix, const std::string& suffix, std::uint64_t columns, const Part& part) {
    add(prefix, suffix, columns, part.name, {part});
  }

  Model take() { return std::move(model_); }

 private:
  Model model_;
  std::uint64_t total_ = 0;
};

void add_layer(Builder& builder, const ModelConfig& c, const std::string& prefix) {
  const std::uint64_t q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim;
  const auto qkv = [&](const std::string& suffix, std::uint64_t columns) {
    builder.add(prefix + "self_attn.", suffix, columns, "qkv_proj",
                {{"q_proj", q, ShardKind::rows, c.heads},
                 {"k_proj", kv, ShardKind::kv_heads, c.kv_heads},
                 {"v_proj", kv, ShardKind::kv_heads, c.kv_heads}});
  };
  const auto gate_up = [&](const std::string& suffix, std::uint64_t columns) {
    builder.add(prefix + "mlp.", suffix, columns, "gate_up_proj",
                {{"gate_proj", c.intermediate, ShardKind::rows, c.intermediate},
                 {"up_proj", c.intermediate, ShardKind::rows, c.intermediate}});
  };
  builder.add(prefix, ".weight", 0, {"input_layernorm", c.hidden});
  qkv(".weight", c.hidden);
  if (c.attention_bias) qkv(".bias", 0);
  if (spec_of(c.family).head_norms) {
    builder.add(prefix + "self_attn.", ".weight", 0, {"q_norm", c.head_dim});
    builder.add(prefix + "self_attn.", ".weight", 0, {"k_norm", c.head_dim});
  }
  builder.add(prefix + "self_attn.", ".weight", q, {"o_proj", c.hidden, ShardKind::columns, c.heads});
  // The partial products of a row-parallel layer are summed over ranks; its bias belongs to the sum, so all hold it.
  if (c.attention_output_bias) builder.add(prefix + "self_attn.", ".bias", 0, {"o_proj", c.hidden});
  builder.add(prefix, ".weight", 0, {"post_attention_layernorm", c.hidden});
  gate_up(".weight", c.hidden);
  if (c.mlp_bias) gate_up(".bias", 0);
  builder.add(prefix + "mlp.", ".weight", c.intermediate, {"down_proj", c.hidden, ShardKind::columns, c.intermediate});
  if (c.mlp_bias) builder.add(prefix + "mlp.", ".bias", 0, {"down_proj", c.hidden});
}

bool divides(const ParameterRule& rule, std::uint64_t tp) noexcept {
  switch (rule.kind) {
    case ShardKind::replicated: return true;
    case ShardKind::kv_heads: return std::max(rule.units, tp) % std::min(rule.units, tp) == 0;
    case ShardKind::rows:
    case ShardKind::columns:
    case ShardKind::vocabulary: return rule.units % tp == 0;
  }
  return false;
}

std::string_view unit_noun(const ParameterRule& rule) noexcept {
  if (rule.kind == ShardKind::kv_heads) return "key/value heads";
  if (rule.kind == ShardKind::vocabulary) return "rows (the vocabulary, padded to a multiple of 64)";
  if (rule.info.name.find("self_attn") != std::string::npos) return "attention heads";
  return rule.kind == ShardKind::columns ? "columns" : "rows";
}

void require_divides(const ParameterRule& rule, std::uint64_t tp) {
  WEIGHTCAST_EXPECTS(tp > 0);
  if (!divides(rule, tp)) {
    fail(ExitCode::config, "{}: {} {} cannot be divided evenly for tp {}", rule.info.name, rule.units, unit_noun(rule),
         tp);
  }
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

MatrixShape matrix_of(const TensorInfo& info) noexcept {
  MatrixShape shape;
  for (std::size_t i = 0; i < info.shape.size(); ++i) (i == 0 ? shape.rows : shape.columns) *= info.shape[i];
  return shape;
}

std::ptrdiff_t Model::find(std::string_view name) const noexcept {
  if (config.tied_embeddings && name == "lm_head.weight") name = "model.embed_tokens.weight";
  const auto found = std::find_if(parameters.begin(), parameters.end(),
                                  [&](const ParameterRule& rule) { return rule.info.name == name; });
  return found == parameters.end() ? -1 : found - parameters.begin();
}

std::uint64_t Model::size_bytes() const noexcept {
  std::uint64_t total = 0;
  for (const auto& rule : parameters) total += rule.info.size_bytes().value_or(0);
  return total;
}

Model build_model(const ModelConfig& config) {
  for (const auto size : {config.layers, config.hidden, config.heads, config.kv_heads, config.head_dim,
                          config.intermediate, config.vocabulary}) {
    WEIGHTCAST_EXPECTS(size > 0);
  }
  if (!checked_multiply(config.heads, config.head_dim) || !checked_multiply(config.kv_heads, config.head_dim) ||
      config.vocabulary > model_limit_bytes) {
    fail(ExitCode::config, "the model's sizes overflow");
  }
  const std::uint64_t padded = round_up(config.vocabulary, vocabulary_unit);
  Builder builder(config);
  builder.add("model.", ".weight", config.hidden, {"embed_tokens", config.vocabulary, ShardKind::vocabulary, padded});
  for (std::uint64_t layer = 0; layer < config.layers; ++layer) {
    add_layer(builder, config, fmt::format("model.layers.{}.", layer));
  }
  builder.add("model.", ".weight", 0, {"norm", config.hidden});
  if (!config.tied_embeddings) {
    builder.add("", ".weight", config.hidden, {"lm_head", config.vocabulary, ShardKind::vocabulary, padded});
  }
  return builder.take();
}

Slice shard_of(const ParameterRule& rule, std::uint64_t tp, std::uint64_t t) {
  WEIGHTCAST_EXPECTS(t < tp);
  require_divides(rule, tp);
  const auto [rows, columns] = matrix_of(rule.info);
  switch (rule.kind) {
    case ShardKind::replicated: break;
    case ShardKind::rows: return {t * (rows / tp), 0, rows / tp, columns};
    case ShardKind::columns: return {0, t * (columns / tp), rows, columns / tp};
    case ShardKind::kv_heads: {
      const std::uint64_t sharers = tp > rule.units ? tp / rule.units : 1;
      const std::uint64_t shard_rows = rows / (tp / sharers);
      return {t / sharers * shard_rows, 0, shard_rows, columns};
    }
    case ShardKind::vocabulary: {
      const std::uint64_t begin = std::min(t * (rule.units / tp), rows);
      return {begin, 0, std::min((t + 1) * (rule.units / tp), rows) - begin, columns};
    }
  }
  return {0, 0, rows, columns};
}

MatrixShape shard_extent(const ParameterRule& rule, std::uint64_t tp) {
  const Slice first = shard_of(rule, tp, 0);
  return {rule.kind == ShardKind::vocabulary ? rule.units / tp : first.rows, first.columns};
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
  if (rule.kind == ShardKind::replicated) return t > 0;
  return rule.kind == ShardKind::kv_heads && tp > rule.units && t % (tp / rule.units) != 0;
}

std::vector<std::size_t> sample_parameters(const Model& model) {
  constexpr const char* in_layers[] = {
      "input_layernorm.weight",  "self_attn.q_proj.weight", "self_attn.k_proj.weight",
      "self_attn.v_proj.weight", "self_attn.o_proj.weight", "mlp.gate_proj.weight",
      "mlp.up_proj.weight",      "mlp.down_proj.weight",    "post_attention_layernorm.weight"};
  std::vector<std::string> names{"model.embed_tokens.weight"};
  std::uint64_t layer = 0;
  for (const char* suffix : in_layers) {
    names.push_back(fmt::format("model.layers.{}.{}", std::min(layer++, model.config.layers - 1), suffix));
  }
  names.insert(names.end(), {"model.norm.weight", "lm_head.weight"});

  std::vector<std::size_t> result;
  for (const auto& name : names) {
    const std::ptrdiff_t index = model.find(name);
    WEIGHTCAST_EXPECTS(index >= 0);
    result.push_back(static_cast<std::size_t>(index));
  }
  return result;
}

}  // namespace weightcast
