#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <span>

#include "weightcast/core/bytes.hpp"
#include "weightcast/core/error.hpp"
#include "weightcast/model/parameter_rules.hpp"

namespace weightcast {
namespace {

constexpr std::uint64_t vocabulary_unit = 64, block_size = 128;
// Some trillion parameters. A plan grows with a model's bytes, so a mistyped shape must not take all memory.
constexpr std::uint64_t model_limit_bytes = std::uint64_t{1} << 42;

/// A parameter to be, without what it shares with its neighbours.
struct Part {
  std::string_view name;
  std::uint64_t rows;
  ShardKind kind = ShardKind::replicated;
  std::uint64_t units = 0;
};

class Builder {
 public:
  Builder(const ModelConfig& config, const EngineFormat& format) : model_{config, {}, format} {}

  /// Adds parameters `prefix``part.name``suffix`, fused into `prefix``engine_name``suffix`, of `columns` columns (0:
  /// none).
  void add_parts(const std::string& prefix, std::string_view suffix, std::uint64_t columns,
                 std::string_view engine_name, std::span<const Part> parts) {
    std::uint32_t position = 0;
    for (const Part& part : parts) {
      std::vector<std::uint64_t> shape{part.rows};
      if (columns > 0) shape.push_back(columns);
      push({.info = {fmt::format("{}{}{}", prefix, part.name, suffix), model_.config.dtype, std::move(shape)},
            .engine_tensor = fmt::format("{}{}{}", prefix, engine_name, suffix),
            .part = position++,
            .kind = part.kind,
            .units = part.units,
            .rows = part.rows});
    }
  }
  /// Adds a parameter that is its own engine tensor.
  void add(const std::string& prefix, std::string_view suffix, std::uint64_t columns, const Part& part) {
    add_parts(prefix, suffix, columns, part.name, {&part, 1});
  }
  /// The same parts of one tensor, which has the name of the engine's.
  void add_fused(const std::string& prefix, std::string_view suffix, std::uint64_t columns, std::string_view name,
                 std::span<const Part> parts) {
    std::vector<std::uint64_t> shape{0};
    for (const Part& part : parts) shape[0] += part.rows;
    if (columns > 0) shape.push_back(columns);
    const auto full = fmt::format("{}{}{}", prefix, name, suffix);
    ParameterRule rule{.info = {full, model_.config.dtype, std::move(shape)}, .engine_tensor = full};
    for (const Part& part : parts) {
      rule.kind = part.kind;
      rule.units = part.units;
      rule.rows = part.rows;
      push(rule);
      rule.row += part.rows;
      ++rule.part;
    }
  }
  /// The matrices that were added from `first` on are those of linear layers, all of one engine tensor.
  void quantize_from(std::size_t first) {
    if (model_.format.quantization == Quantization::none) return;
    auto& all = model_.parameters;
    const auto end = all.size();
    for (auto i = first; i < end; ++i) {
      if (i + 1 < end) expect_whole_blocks(all[i], all[i + 1]);
      push(scale_of(all[i]));
    }
    for (auto i = first; i < end; ++i) all[i].info.dtype = DType::F8_E4M3;
  }
  std::size_t count() const noexcept { return model_.parameters.size(); }

  void push(ParameterRule rule) {
    const auto bytes = rule.info.size_bytes();
    if (!bytes || *bytes > model_limit_bytes || (total_ += size_bytes_of(rule)) > model_limit_bytes)
      fail(ExitCode::config, "{}: the model is larger than {}", rule.info.name, format_size(model_limit_bytes));
    model_.parameters.push_back(std::move(rule));
  }

  Model take() {
    index_names(model_);
    return std::move(model_);
  }

 private:
  /// What follows it in one engine tensor would begin within a block.
  void expect_whole_blocks(const ParameterRule& rule, const ParameterRule& next) const {
    if (model_.format.quantization != Quantization::fp8_block || rule.rows % block_size == 0) return;
    throw Error(ExitCode::config,
                fmt::format("{}: {} rows are not blocks of {}, and {} follows in {}", rule.info.name, rule.rows,
                            block_size, next.info.name, rule.engine_tensor),
                "engines refuse this as well: quantize by fp8-channel, or not");
  }

  /// Cut like its matrix, where that leaves blocks whole.
  ParameterRule scale_of(const ParameterRule& matrix) const {
    auto scale = matrix;
    scale.info.name = scale_name(matrix.info.name, model_.format.quantization);
    scale.engine_tensor = scale_name(matrix.engine_tensor, model_.format.quantization);
    scale.info.dtype = DType::F32;
    const auto columns = matrix.info.shape[1];
    if (model_.format.quantization == Quantization::fp8_channel) {
      scale.info.shape = {matrix.info.shape[0], 1};
      if (matrix.kind == ShardKind::columns) scale.kind = ShardKind::replicated;
      return scale;
    }
    const auto blocks = [](std::uint64_t size) { return (size + block_size - 1) / block_size; };
    scale.info.shape = {blocks(matrix.info.shape[0]), blocks(columns)};
    scale.row = matrix.row / block_size;
    scale.rows = blocks(matrix.rows);
    const bool whole = (matrix.kind == ShardKind::columns ? columns : matrix.rows) % block_size == 0;
    const bool by_heads = matrix.kind == ShardKind::kv_heads && whole;
    if (matrix.kind == ShardKind::kv_heads && !whole) scale.kind = ShardKind::rows;
    if (matrix.kind != ShardKind::replicated && !by_heads)
      scale.units = !whole ? 1 : matrix.kind == ShardKind::columns ? columns / block_size : scale.rows;
    return scale;
  }

  Model model_;
  std::uint64_t total_ = 0;
};

/// What the layers of a model are made of, added in order.
class Layers {
 public:
  Layers(Builder& builder, const ModelConfig& config, const EngineFormat& format)
      : builder_(builder), c_(config), spec_(spec_of(config.family)), format_(format) {}

  void add(std::uint64_t index) {
    const auto prefix = fmt::format("model.layers.{}.", index);
    for (const auto step : spec_.layer) {
      if (step == "self_attn") {
        spec_.latent_attention ? add_latent_attention(prefix + "self_attn.") : add_attention(prefix + "self_attn.");
      } else if (step != "mlp") {
        builder_.add(prefix, ".weight", 0, {step, c_.hidden});
      } else if (c_.experts.in_layer(index)) {
        add_experts(fmt::format("{}{}.", prefix, spec_.experts.module));
      } else {
        add_mlp(prefix + "mlp.", c_.intermediate);
      }
    }
  }

 private:
  using AddParts = void (Builder::*)(const std::string&, std::string_view, std::uint64_t, std::string_view,
                                     std::span<const Part>);

  /// Weights of linear layers that make one engine tensor.
  void add_linear(const std::string& prefix, std::uint64_t columns, std::string_view engine_name,
                  std::span<const Part> parts, AddParts way = &Builder::add_parts) {
    const auto first = builder_.count();
    (builder_.*way)(prefix, ".weight", columns, engine_name, parts);
    builder_.quantize_from(first);
  }
  void add_linear(const std::string& prefix, std::uint64_t columns, const Part& part) {
    add_linear(prefix, columns, part.name, {&part, 1});
  }

  void add_attention(const std::string& prefix) {
    const std::uint64_t q = c_.heads * c_.head_dim, kv = c_.kv_heads * c_.head_dim;
    const std::array parts{Part{"q_proj", q, ShardKind::rows, c_.heads},
                           Part{"k_proj", kv, ShardKind::kv_heads, c_.kv_heads},
                           Part{"v_proj", kv, ShardKind::kv_heads, c_.kv_heads}};
    const auto way = spec_.fused_qkv ? &Builder::add_fused : &Builder::add_parts;
    add_linear(prefix, c_.hidden, "qkv_proj", parts, way);
    if (c_.attention_bias) (builder_.*way)(prefix, ".bias", 0, "qkv_proj", parts);
    if (c_.query_norms && spec_.query_norms != QueryNorms::none) {
      const bool whole = spec_.query_norms == QueryNorms::whole;
      builder_.add(prefix, ".weight", 0, {"q_norm", whole ? q : c_.head_dim});
      builder_.add(prefix, ".weight", 0, {"k_norm", whole ? kv : c_.head_dim});
    }
    if (spec_.sinks) builder_.add(prefix, "", 0, {"sinks", c_.heads, ShardKind::rows, c_.heads});
    add_output(prefix, q);
  }

  void add_latent_attention(const std::string& prefix) {
    const auto& l = c_.latent;
    const Part kv_a{"kv_a_proj_with_mqa", l.key_value_rank + l.rope_dim};
    const std::uint64_t q = c_.heads * (l.nope_dim + l.rope_dim), kv = c_.heads * (l.nope_dim + l.value_dim);
    if (l.query_rank > 0) {
      const std::array parts{Part{"q_a_proj", l.query_rank}, kv_a};
      add_linear(prefix, c_.hidden, "fused_qkv_a_proj_with_mqa", parts);
      if (c_.attention_bias) builder_.add_parts(prefix, ".bias", 0, "fused_qkv_a_proj_with_mqa", parts);
      builder_.add(prefix, ".weight", 0, {"q_a_layernorm", l.query_rank});
      add_linear(prefix, l.query_rank, {"q_b_proj", q, ShardKind::rows, c_.heads});
    } else {
      add_linear(prefix, c_.hidden, {"q_proj", q, ShardKind::rows, c_.heads});
      add_linear(prefix, c_.hidden, kv_a);
      if (c_.attention_bias) builder_.add(prefix, ".bias", 0, kv_a);
    }
    builder_.add(prefix, ".weight", 0, {"kv_a_layernorm", l.key_value_rank});
    add_linear(prefix, l.key_value_rank, {"kv_b_proj", kv, ShardKind::rows, c_.heads});
    add_output(prefix, c_.heads * l.value_dim);
  }

  void add_output(const std::string& prefix, std::uint64_t columns) {
    add_linear(prefix, columns, {"o_proj", c_.hidden, ShardKind::columns, c_.heads});
    // The partial products of a row-parallel layer are summed over ranks; its bias belongs to the sum, so all hold it.
    if (c_.attention_output_bias) builder_.add(prefix, ".bias", 0, {"o_proj", c_.hidden});
  }

  void add_mlp(const std::string& prefix, std::uint64_t size) {
    const std::array parts{Part{"gate_proj", size, ShardKind::rows, size},
                           Part{"up_proj", size, ShardKind::rows, size}};
    const auto way = spec_.fused_gate_up ? &Builder::add_fused : &Builder::add_parts;
    add_linear(prefix, c_.hidden, "gate_up_proj", parts, way);
    if (c_.mlp_bias) (builder_.*way)(prefix, ".bias", 0, "gate_up_proj", parts);
    add_linear(prefix, size, {"down_proj", c_.hidden, ShardKind::columns, size});
    if (c_.mlp_bias) builder_.add(prefix, ".bias", 0, {"down_proj", c_.hidden});
  }

  void add_experts(const std::string& prefix) {
    const auto& spec = spec_.experts;
    const auto count = c_.experts.count;
    const auto router = fmt::format("{}{}.weight", prefix, spec.router);
    builder_.push({.info = {router, c_.wide_routers ? DType::F32 : c_.dtype, {count, c_.hidden}},
                   .engine_tensor = router,
                   .rows = count});
    if (spec.router_bias) builder_.add(prefix, ".bias", 0, {spec.router, count});
    if (spec.correction_bias) {
      // Added to scores in F32, whatever the weights are: rounded it would choose other experts.
      const auto bias = prefix + "gate.e_score_correction_bias";
      builder_.push({.info = {bias, DType::F32, {count}}, .engine_tensor = bias, .rows = count});
    }
    spec.form == ExpertForm::stacked ? add_stacked(prefix + "experts.") : add_separate(prefix + "experts.");
    if (!spec.shared.empty() && c_.experts.shared > 0)
      add_mlp(fmt::format("{}{}.", prefix, spec.shared), c_.experts.shared);
    if (!spec.shared_gate.empty()) builder_.add(prefix, ".weight", c_.hidden, {spec.shared_gate, 1});
  }

  void add_separate(const std::string& prefix) {
    const auto& spec = spec_.experts;
    const auto size = c_.experts.intermediate;
    const auto push = [&](std::uint64_t expert, std::string_view name, std::string_view engine_name, std::uint32_t part,
                          std::vector<std::uint64_t> shape, ShardKind kind) {
      builder_.push({.info = {fmt::format("{}{}.{}.weight", prefix, expert, name), c_.dtype, shape},
                     .engine_tensor = fmt::format("{}{}", prefix, engine_name),
                     .part = part,
                     .kind = kind,
                     .units = size,
                     .rows = shape[0],
                     .expert = expert,
                     .experts = c_.experts.count,
                     .ep = format_.ep});
    };
    const auto first = builder_.count();
    for (std::uint32_t e = 0; e < c_.experts.count; ++e) {
      push(e, spec.gate, "w13_weight", 2 * e, {size, c_.hidden}, ShardKind::rows);
      push(e, spec.up, "w13_weight", 2 * e + 1, {size, c_.hidden}, ShardKind::rows);
    }
    builder_.quantize_from(first);
    const auto first_down = builder_.count();
    for (std::uint32_t e = 0; e < c_.experts.count; ++e)
      push(e, spec.down, "w2_weight", e, {c_.hidden, size}, ShardKind::columns);
    builder_.quantize_from(first_down);
  }

  /// Gate and up in turn, so that any cut into pairs keeps them together: columns of whole pairs.
  void add_stacked(const std::string& prefix) {
    const auto size = c_.experts.intermediate, count = c_.experts.count;
    const auto push = [&](std::string_view name, std::string_view engine_name, std::vector<std::uint64_t> shape,
                          ShardKind kind) {
      ParameterRule rule{.info = {fmt::format("{}{}", prefix, name), c_.dtype, shape},
                         .engine_tensor = fmt::format("{}{}", prefix, engine_name),
                         .kind = kind,
                         .units = kind == ShardKind::replicated ? 0 : size,
                         .rows = shape.size() == 3 ? shape[1] : 1,
                         .experts = count,
                         .ep = format_.ep};
      for (std::uint32_t e = 0; e < count; ++e) {
        rule.expert = rule.part = e;
        rule.row = e * rule.rows;
        builder_.push(rule);
      }
    };
    push("gate_up_proj", "w13_weight", {count, c_.hidden, 2 * size}, ShardKind::columns);
    push("gate_up_proj_bias", "w13_weight_bias", {count, 2 * size}, ShardKind::columns);
    push("down_proj", "w2_weight", {count, size, c_.hidden}, ShardKind::rows);
    push("down_proj_bias", "w2_weight_bias", {count, c_.hidden}, ShardKind::replicated);
  }

  Builder& builder_;
  const ModelConfig& c_;
  const FamilySpec& spec_;
  const EngineFormat& format_;
};

void check_format(const ModelConfig& config, const EngineFormat& format) {
  if (format.quantization != Quantization::none && spec_of(config.family).experts.form == ExpertForm::stacked)
    throw Error(ExitCode::config,
                fmt::format("{} models cannot be quantized: their experts are stacked", name(config.family)),
                "leave out --quantize");
  if (format.ep == 0) throw Error(ExitCode::config, "ep must be 1 or more");
  if (format.ep == 1) return;
  if (config.experts.count == 0)
    throw Error(ExitCode::config, fmt::format("ep {}: {} models have no experts", format.ep, name(config.family)),
                "leave out --ep");
  if (config.experts.count % format.ep == 0) return;
  std::string possible;
  for (std::uint64_t ep = 2; ep <= config.experts.count; ++ep) {
    if (config.experts.count % ep == 0) possible += fmt::format("{}{}", possible.empty() ? "" : ", ", ep);
  }
  throw Error(ExitCode::config,
              fmt::format("{} experts cannot be divided evenly for ep {}", config.experts.count, format.ep),
              fmt::format("the experts of this model can be owned by {} groups", possible));
}

}  // namespace

Model build_model(const ModelConfig& config, const EngineFormat& format) {
  for (const auto size : {config.layers, config.hidden, config.heads, config.kv_heads, config.head_dim,
                          config.intermediate, config.vocabulary}) {
    WEIGHTCAST_EXPECTS(size > 0);
  }
  const auto widest = std::max({config.head_dim, config.latent.nope_dim + config.latent.value_dim});
  if (!checked_multiply(config.heads, widest) || !checked_multiply(config.kv_heads, config.head_dim) ||
      config.vocabulary > model_limit_bytes) {
    fail(ExitCode::config, "the model's sizes overflow");
  }
  check_format(config, format);
  const std::uint64_t padded = round_up(config.vocabulary, vocabulary_unit);
  Builder builder(config, format);
  builder.add("model.", ".weight", config.hidden, {"embed_tokens", config.vocabulary, ShardKind::vocabulary, padded});
  Layers layers(builder, config, format);
  for (std::uint64_t layer = 0; layer < config.layers; ++layer) layers.add(layer);
  builder.add("model.", ".weight", 0, {"norm", config.hidden});
  if (!config.tied_embeddings) {
    builder.add("", ".weight", config.hidden, {"lm_head", config.vocabulary, ShardKind::vocabulary, padded});
  }
  return builder.take();
}

}  // namespace weightcast
