#include "weightcast/model/model_config.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <set>
#include <utility>

#include "weightcast/core/bytes.hpp"
#include "weightcast/core/error.hpp"
#include "weightcast/core/near_miss.hpp"
#include "weightcast/model/config_keys.hpp"

namespace weightcast {
namespace {

struct DTypeNames {
  DType dtype;
  std::string_view torch;
};
constexpr std::array<DTypeNames, 3> dtypes{
    {{DType::BF16, "bfloat16"}, {DType::F16, "float16"}, {DType::F32, "float32"}}};

/// `names` says by which of its names a family may be meant.
[[noreturn]] void unsupported_family(const std::string& what, const std::string& key, std::string_view value,
                                     std::string_view FamilySpec::*names) {
  std::vector<std::string_view> known;
  std::set<std::string> all;
  for (const auto& spec : families()) all.emplace(known.emplace_back(spec.*names));
  throw Error(
      ExitCode::config, fmt::format("{}: \"{}\" is \"{}\", which is not supported", what, key, printable(value)),
      did_you_mean(value, all, "",
                   fmt::format("supported families: {}; lib/DESIGN.md says how to add one", fmt::join(known, ", "))));
}

/// The family that the name of a class says. A class that wraps one is named after it, prefix first; that is believed
/// of any prefix and of a class without a head where `by_type` agrees, otherwise of known wrappers. Nothing is known of
/// wrappers that hide what they wrap: then it is what `by_type` says.
std::optional<Family> family_of_class(std::string_view architecture, std::optional<Family> by_type) {
  for (const auto& entry : families()) {
    if (architecture == entry.architecture) return entry.family;
  }
  for (const std::string_view wrapper : {"FSDP", "DDP", "Compiled", "DeepSpeed", "Checkpointed"}) {
    if (architecture.starts_with(wrapper)) return family_of_class(architecture.substr(wrapper.size()), by_type);
  }
  if (!by_type) return std::nullopt;
  for (const std::string_view opaque :
       {"PeftModelForCausalLM", "PeftModel", "OptimizedModule", "FullyShardedDataParallel", "DistributedDataParallel",
        "AutoModelForCausalLMWithValueHead"}) {
    if (architecture == opaque) return by_type;
  }
  for (const auto& entry : families()) {
    const auto base = std::string(entry.architecture.substr(0, entry.architecture.find("For"))) + "Model";
    if (architecture == base || architecture.ends_with(entry.architecture)) return entry.family;
  }
  return std::nullopt;
}

Family read_family(const ConfigKeys& keys, const ConfigContext& context) {
  std::optional<Family> by_type, by_architecture;
  if (const auto type = keys.get<std::string>("model_type", "a string")) {
    for (const auto& entry : families()) {
      if (entry.model_type == *type) by_type = entry.family;
    }
    if (!by_type) unsupported_family(keys.what(), "model_type", *type, &FamilySpec::model_type);
  }
  const auto architectures = keys.get<ConfigList>("architectures", "an array of strings").value_or(ConfigList{});
  for (const auto& architecture : architectures.strings) {
    const auto found = family_of_class(architecture, by_type);
    if (!found) unsupported_family(keys.what(), "architectures", architecture, &FamilySpec::architecture);
    if (by_architecture.value_or(*found) != *found) {
      fail(ExitCode::bad_data, "{}: \"architectures\" names two families", keys.what());
    }
    by_architecture = found;
    const bool plain = std::any_of(families().begin(), families().end(),
                                   [&](const auto& entry) { return entry.architecture == architecture; });
    if (!plain) context.note(fmt::format("{}: {} is read as {}", keys.what(), printable(architecture), name(*found)));
  }
  if (!by_type && !by_architecture) {
    fail(ExitCode::bad_data, "{}: \"model_type\" and \"architectures\" are missing: the family is unknown",
         keys.what());
  }
  if (by_type && by_architecture && *by_type != *by_architecture) {
    fail(ExitCode::bad_data, "{}: \"model_type\" says {} but \"architectures\" says {}", keys.what(), name(*by_type),
         name(*by_architecture));
  }
  return by_type ? *by_type : *by_architecture;
}

DType read_dtype(const ConfigKeys& keys, const ConfigContext& context) {
  std::optional<DType> result;
  bool contradiction = false;
  for (const std::string key : {"torch_dtype", "dtype"}) {
    const auto text = keys.get<std::string>(key, "a string");
    if (!text || *text == "auto") continue;
    std::string_view torch = *text;
    if (torch.starts_with("torch.")) torch.remove_prefix(6);
    std::optional<DType> found;
    for (const auto& entry : dtypes) {
      if (entry.torch == torch) found = entry.dtype;
    }
    if (!found) {
      throw Error(ExitCode::config,
                  fmt::format("{}: \"{}\" is \"{}\", which is not supported", keys.what(), key, printable(*text)),
                  "supported: bfloat16, float16, float32");
    }
    contradiction = result.value_or(*found) != *found;
    result = found;
  }
  if (contradiction && !context.weights)
    fail(ExitCode::bad_data, "{}: \"torch_dtype\" and \"dtype\" differ", keys.what());
  if (result && !contradiction) return *result;
  if (context.weights) {
    context.note(fmt::format("{} {}: {} by the tensors", keys.what(),
                             contradiction ? "names two dtypes" : "names no dtype", name(*context.weights)));
  }
  return context.weights.value_or(DType::BF16);
}

void refuse_quantised(const ConfigKeys& keys) {
  for (const std::string key : {"quantization_config", "compression_config"}) {
    if (!keys.has(key)) continue;
    throw Error(ExitCode::config, fmt::format("{}: \"{}\": quantised models are not supported", keys.what(), key),
                "use the checkpoint in bfloat16, float16 or float32; engines in fp8 get theirs by --quantize");
  }
}

/// What a text_config may leave out, because it is the default in transformers (models/*/configuration_*.py).
const ModelConfig& defaults_of(Family family) {
  static const ModelConfig none,
      llama{.layers = 32, .hidden = 4096, .heads = 32, .kv_heads = 32, .intermediate = 11008, .vocabulary = 32000},
      mistral{.layers = 32, .hidden = 4096, .heads = 32, .kv_heads = 8, .intermediate = 14336, .vocabulary = 32000},
      qwen2{.layers = 32, .hidden = 4096, .heads = 32, .kv_heads = 32, .intermediate = 22016, .vocabulary = 151936},
      gemma3{.layers = 26,
             .hidden = 2304,
             .heads = 8,
             .kv_heads = 4,
             .head_dim = 256,
             .intermediate = 9216,
             .vocabulary = 262208};
  switch (family) {
    case Family::llama: return llama;
    case Family::mistral: return mistral;
    case Family::qwen2: return qwen2;
    case Family::gemma3_text: return gemma3;
    default: return none;
  }
}

/// Sizes, by what the config says or else its class.
class SizeReader {
 public:
  SizeReader(const ConfigKeys& keys, const ModelConfig* defaults) : keys_(keys), defaults_(defaults) {}
  std::uint64_t read(const std::string& key, std::uint64_t ModelConfig::*size, std::uint64_t limit = size_limit) const {
    const auto value = read_or(key, size, 0, limit);
    return value > 0 ? value : keys_.size(key, limit);
  }
  std::uint64_t read_or(const std::string& key, std::uint64_t ModelConfig::*size, std::uint64_t otherwise,
                        std::uint64_t limit = size_limit) const {
    if (const auto value = keys_.optional_size(key, limit)) return *value;
    return defaults_ != nullptr && defaults_->*size > 0 ? defaults_->*size : otherwise;
  }

 private:
  const ConfigKeys& keys_;
  const ModelConfig* defaults_;
};

Family read_text_family(const ConfigKeys& all, const ConfigContext& context) {
  const auto outer = all.get<std::string>("model_type", "a string").value_or("a larger model");
  auto family = outer == "gemma3" ? Family::gemma3_text : Family::llama;  // of those that leave it out
  if (all.text()->has("model_type")) family = read_family(*all.text(), context);
  context.note(fmt::format("{}: of {} the language model, which is {}", all.what(), printable(outer), name(family)));
  return family;
}

LatentSizes read_latent(const ConfigKeys& keys) {
  // null says that queries are whole; left out, the class would have one of its own.
  if (!keys.names("q_lora_rank")) fail(ExitCode::bad_data, "{}: \"q_lora_rank\" is missing", keys.what());
  return {.query_rank = keys.optional_size("q_lora_rank").value_or(0),
          .key_value_rank = keys.size("kv_lora_rank"),
          .nope_dim = keys.size("qk_nope_head_dim"),
          .rope_dim = keys.size("qk_rope_head_dim"),
          .value_dim = keys.size("v_head_dim")};
}

/// Which of the layers have no experts: by a list of types, or by what families say in their own ways.
std::vector<std::uint64_t> read_dense_layers(const ConfigKeys& keys, const ExpertsSpec& spec, std::uint64_t layers) {
  const auto types = keys.get<ConfigList>("mlp_layer_types", "an array of strings").value_or(ConfigList{}).strings;
  if (!types.empty() && types.size() != layers) {
    fail(ExitCode::bad_data, "{}: \"mlp_layer_types\" has {} entries for {} layers", keys.what(), types.size(), layers);
  }
  auto dense = keys.get<ConfigList>("mlp_only_layers", "an array of numbers").value_or(ConfigList{}).numbers;
  if (types.empty() && spec.count_key == "n_routed_experts" && !keys.has("first_k_dense_replace"))
    fail(ExitCode::bad_data, "{}: \"first_k_dense_replace\" is missing", keys.what());
  const auto first = keys.number_in("first_k_dense_replace", 0, layer_limit).value_or(0),
             every = keys.number_in("moe_layer_freq", 1, layer_limit).value_or(1),
             step = keys.number_in("decoder_sparse_step", 1, layer_limit).value_or(1);
  std::vector<std::uint64_t> result;
  for (std::uint64_t i = 0; i < layers; ++i) {
    const bool by_keys =
        i < first || i % every != 0 || (i + 1) % step != 0 || std::ranges::find(dense, i) != dense.end();
    if (types.empty() ? by_keys : types[i] == "dense") result.push_back(i);
  }
  return result;
}

ExpertSizes read_experts(const ConfigKeys& keys, const ExpertsSpec& spec, std::uint64_t layers) {
  ExpertSizes sizes;
  // transformers 5 saves what was num_experts as num_local_experts.
  const auto count_key = std::string(spec.count_key);
  const auto count = keys.optional_size(count_key, expert_limit),
             local = keys.optional_size("num_local_experts", expert_limit);
  if (count && local && *count != *local) {
    fail(ExitCode::bad_data, "{}: \"{}\" is {}, and \"num_local_experts\" is {}", keys.what(), count_key, *count,
         *local);
  }
  sizes.count = count ? *count : local ? *local : keys.size(count_key);
  sizes.intermediate = keys.size(std::string(spec.size_key));
  if (!spec.shared_size_key.empty()) sizes.shared = keys.size(std::string(spec.shared_size_key));
  if (!spec.shared_count_key.empty()) {
    const auto most = size_limit / sizes.intermediate;
    sizes.shared = keys.number_in(std::string(spec.shared_count_key), 0, most).value_or(0) * sizes.intermediate;
  }
  sizes.dense_layers = read_dense_layers(keys, spec, layers);
  return sizes;
}

ModelConfig read_model_config(std::string_view text, const std::string& what, const ConfigContext& context) {
  ConfigKeys all(what);
  const auto json = without_infinities(text);
  parse_strict_json(json, all, what);
  if (json != text) context.note(what + ": NaN or Infinity in it is passed over");
  const auto& keys = all.text() == nullptr ? all : *all.text();
  for (const ConfigKeys* const object : {static_cast<const ConfigKeys*>(&all), all.text()}) {
    if (object == nullptr) continue;
    for (const auto& key : object->repeated())
      context.note(fmt::format("{}: the key \"{}\" appears twice and is passed over", object->what(), printable(key)));
    refuse_quantised(*object);
  }

  ModelConfig config;
  config.inside = all.text() != nullptr;
  config.family = config.inside ? read_text_family(all, context) : read_family(all, context);
  const auto& spec = spec_of(config.family);
  const SizeReader sizes(keys, config.inside ? &defaults_of(config.family) : nullptr);
  config.layers = sizes.read("num_hidden_layers", &ModelConfig::layers, layer_limit);
  config.hidden = sizes.read("hidden_size", &ModelConfig::hidden);
  config.intermediate = sizes.read("intermediate_size", &ModelConfig::intermediate);
  config.vocabulary = sizes.read("vocab_size", &ModelConfig::vocabulary);
  config.heads = sizes.read("num_attention_heads", &ModelConfig::heads);
  config.kv_heads = sizes.read_or("num_key_value_heads", &ModelConfig::kv_heads, config.heads);
  if (config.heads % config.kv_heads != 0) {
    fail(ExitCode::bad_data, "{}: \"num_attention_heads\" ({}) is not a multiple of \"num_key_value_heads\" ({})", what,
         config.heads, config.kv_heads);
  }
  if (spec.latent_attention) {
    config.latent = read_latent(keys);
    config.head_dim = config.latent.nope_dim + config.latent.rope_dim;
  } else {
    config.head_dim = sizes.read_or("head_dim", &ModelConfig::head_dim, spec.head_dim);
    if (config.head_dim == 0 && config.hidden % config.heads != 0) {
      fail(ExitCode::bad_data,
           "{}: \"head_dim\" is missing, and \"hidden_size\" ({}) is not a multiple of "
           "\"num_attention_heads\" ({})",
           what, config.hidden, config.heads);
    }
    if (config.head_dim == 0) config.head_dim = config.hidden / config.heads;
  }
  const auto flag = [&](const Flag& rule) {
    return rule.key.empty() ? rule.otherwise : keys.flag(std::string(rule.key), rule.otherwise);
  };
  config.attention_bias = flag(spec.attention_bias);
  config.attention_output_bias = flag(spec.attention_output_bias);
  config.mlp_bias = flag(spec.mlp_bias);
  config.query_norms = flag(spec.has_query_norms);
  if (spec.experts.form != ExpertForm::none) config.experts = read_experts(keys, spec.experts, config.layers);
  config.wide_routers = context.wide_routers && config.experts.count > 0;
  config.skipped_layers = keys.number_in("num_nextn_predict_layers", 0, layer_limit).value_or(spec.predictors);
  // What both say is the larger model's to say.
  const auto& tied = all.has("tie_word_embeddings") ? all : keys;
  config.tied_embeddings = tied.flag("tie_word_embeddings", spec.tied);
  const bool own_dtype = keys.has("torch_dtype") || keys.has("dtype");
  config.dtype = read_dtype(own_dtype ? keys : all, context);
  config.wide_routers = config.wide_routers && config.dtype != DType::F32;
  return config;
}

}  // namespace

void ConfigContext::note(std::string text) const {
  if (notes != nullptr) notes->push_back(std::move(text));
}

ModelConfig parse_model_config(std::string_view text, const std::string& what, const ConfigContext& context) {
  try {
    return read_model_config(text, what, context);
  } catch (const Error& error) {
    if (!error.hint().empty()) throw;
    throw Error(
        error.code(), error.what(),
        "correct it, or take the config.json that its model was published with (config.json of its base model)");
  }
}

}  // namespace weightcast
