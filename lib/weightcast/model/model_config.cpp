#include "weightcast/model/model_config.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <map>
#include <set>
#include <utility>
#include <variant>

#include "weightcast/core/bytes.hpp"
#include "weightcast/core/error.hpp"
#include "weightcast/core/near_miss.hpp"
#include "weightcast/core/strict_json.hpp"

namespace weightcast {
namespace {

struct DTypeNames {
  DType dtype;
  std::string_view torch;
};
constexpr std::array<DTypeNames, 3> dtypes{
    {{DType::BF16, "bfloat16"}, {DType::F16, "float16"}, {DType::F32, "float32"}}};

// Far above any model, and small enough that a product of two never overflows.
constexpr std::uint64_t layer_limit = 10'000, size_limit = std::uint64_t{1} << 24;

struct Nested {};
using Strings = std::vector<std::string>;
using Value = std::variant<std::nullptr_t, std::uint64_t, double, bool, std::string, Strings, Nested>;

/// Keeps the values of the top-level keys. Of nested values it keeps only strings directly inside an array.
class TopLevelKeys : public JsonHandler {
 public:
  explicit TopLevelKeys(std::string what) : what_(std::move(what)) {}

  void begin_object(std::size_t) override {
    if (depth_ > 0) keep(Nested{});
    ++depth_;
  }
  void begin_array(std::size_t) override {
    keep(Strings{});
    ++depth_;
  }
  void end_object(std::size_t) override { --depth_; }
  void end_array(std::size_t) override { --depth_; }
  void key(const std::string& name, std::size_t) override {
    if (depth_ == 1) key_ = name;
  }
  void string(const std::string& value, std::size_t) override {
    if (auto* array = depth_ == 2 ? std::get_if<Strings>(&values_[key_]) : nullptr) {
      array->push_back(value);
    } else {
      keep(value);
    }
  }
  void unsigned_integer(std::uint64_t value, std::size_t) override { keep(value); }
  void number(double value, std::size_t) override { keep(value); }
  void boolean(bool value, std::size_t) override { keep(value); }
  void null(std::size_t) override { keep(nullptr); }
  bool take_repeated_key(const std::string& name) override {
    if (depth_ == 1) repeated_.insert(name);
    return true;
  }
  bool take_large_integer() override { return true; }

  const std::string& what() const noexcept { return what_; }
  const std::set<std::string>& repeated() const noexcept { return repeated_; }

  /// The value of `key`, or nothing when it is absent or null. `expected` describes T for the message.
  template <typename T>
  std::optional<T> get(const std::string& key, std::string_view expected) const {
    if (repeated_.contains(key)) fail(ExitCode::bad_data, "{}: the key \"{}\" appears twice", what_, key);
    const auto found = values_.find(key);
    if (found == values_.end() || std::holds_alternative<std::nullptr_t>(found->second)) return std::nullopt;
    const T* value = std::get_if<T>(&found->second);
    if (value == nullptr) fail(ExitCode::bad_data, "{}: \"{}\" must be {}", what_, key, expected);
    return *value;
  }
  bool has(const std::string& key) const {
    if (repeated_.contains(key)) return true;
    const auto found = values_.find(key);
    return found != values_.end() && !std::holds_alternative<std::nullptr_t>(found->second);
  }
  bool flag(const std::string& key, bool otherwise) const {
    return get<bool>(key, "true or false").value_or(otherwise);
  }
  std::optional<std::uint64_t> optional_size(const std::string& key, std::uint64_t limit = size_limit) const {
    const std::string expected = fmt::format("a whole number from 1 to {}", limit);
    const auto value = get<std::uint64_t>(key, expected);
    if (value && (*value == 0 || *value > limit)) {
      fail(ExitCode::bad_data, "{}: \"{}\" is {}, it must be {}", what_, key, *value, expected);
    }
    return value;
  }
  std::uint64_t size(const std::string& key, std::uint64_t limit = size_limit) const {
    const auto value = optional_size(key, limit);
    if (!value) fail(ExitCode::bad_data, "{}: \"{}\" is missing", what_, key);
    return *value;
  }

 private:
  void keep(Value value) {
    if (depth_ == 0) fail(ExitCode::bad_data, "{}: not a JSON object", what_);
    if (depth_ == 1) values_[key_] = std::move(value);
  }

  std::string what_, key_;
  std::size_t depth_ = 0;
  std::map<std::string, Value> values_;
  std::set<std::string> repeated_;
};

/// Python writes NaN and Infinity, which are not JSON. Where a value may stand they become numbers of the same length:
/// no number with a fraction is ever read from a config, so nothing that is needed can be one of them.
std::string without_infinities(std::string_view text) {
  std::string result(text);
  constexpr std::string_view before = ":[, \t\r\n", after = ",]} \t\r\n";
  bool in_string = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '"') in_string = !in_string;
    if (in_string && text[i] == '\\') ++i;
    if (in_string || i == 0) continue;
    for (const std::string_view word : {"NaN", "Infinity"}) {
      const std::size_t start = text[i - 1] == '-' && i > 1 ? i - 2 : i - 1, end = i + word.size();
      if (!text.substr(i).starts_with(word) || before.find(text[start]) == before.npos) continue;
      if (end < text.size() && after.find(text[end]) != after.npos)
        result.replace(i, word.size(), "0." + std::string(word.size() - 2, '0'));
    }
  }
  return result;
}

/// `names` says by which of its names a family may be meant.
[[noreturn]] void unsupported_family(const std::string& what, const std::string& key, std::string_view value,
                                     std::string_view FamilySpec::*names) {
  Strings known;
  std::set<std::string> all;
  for (const auto& spec : families()) {
    known.push_back(fmt::format("{} ({})", spec.model_type, spec.architecture));
    all.emplace(spec.*names);
  }
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

Family read_family(const TopLevelKeys& keys, const ConfigContext& context) {
  std::optional<Family> by_type, by_architecture;
  if (const auto type = keys.get<std::string>("model_type", "a string")) {
    for (const auto& entry : families()) {
      if (entry.model_type == *type) by_type = entry.family;
    }
    if (!by_type) unsupported_family(keys.what(), "model_type", *type, &FamilySpec::model_type);
  }
  const auto architectures = keys.get<Strings>("architectures", "an array of strings").value_or(Strings{});
  for (const auto& architecture : architectures) {
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

DType read_dtype(const TopLevelKeys& keys, const ConfigContext& context) {
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

}  // namespace

void ConfigContext::note(std::string text) const {
  if (notes != nullptr) notes->push_back(std::move(text));
}

ModelConfig parse_model_config(std::string_view text, const std::string& what, const ConfigContext& context) {
  TopLevelKeys keys(what);
  const auto json = without_infinities(text);
  parse_strict_json(json, keys, what);
  if (json != text) context.note(what + ": NaN or Infinity in it is passed over");
  for (const auto& key : keys.repeated()) {
    context.note(fmt::format("{}: the key \"{}\" appears twice and is passed over", what, printable(key)));
  }
  for (const std::string key : {"quantization_config", "compression_config"}) {
    if (keys.has(key)) {
      throw Error(ExitCode::config, fmt::format("{}: \"{}\": quantised models are not supported", what, key),
                  "use the checkpoint in bfloat16, float16 or float32");
    }
  }

  ModelConfig config;
  config.family = read_family(keys, context);
  config.layers = keys.size("num_hidden_layers", layer_limit);
  config.hidden = keys.size("hidden_size");
  config.intermediate = keys.size("intermediate_size");
  config.vocabulary = keys.size("vocab_size");
  config.heads = keys.size("num_attention_heads");
  config.kv_heads = keys.optional_size("num_key_value_heads").value_or(config.heads);
  if (config.heads % config.kv_heads != 0) {
    fail(ExitCode::bad_data, "{}: \"num_attention_heads\" ({}) is not a multiple of \"num_key_value_heads\" ({})", what,
         config.heads, config.kv_heads);
  }
  const auto head_dim = keys.optional_size("head_dim");
  if (!head_dim && config.hidden % config.heads != 0) {
    fail(ExitCode::bad_data,
         "{}: \"head_dim\" is missing, and \"hidden_size\" ({}) is not a multiple of "
         "\"num_attention_heads\" ({})",
         what, config.hidden, config.heads);
  }
  config.head_dim = head_dim.value_or(config.hidden / config.heads);
  const auto& spec = spec_of(config.family);
  const auto bias = [&](Bias rule, const std::string& key) {
    return rule == Bias::always || (rule == Bias::by_config && keys.flag(key, false));
  };
  config.tied_embeddings = keys.flag("tie_word_embeddings", spec.tied);
  config.attention_bias = bias(spec.attention_bias, "attention_bias");
  config.attention_output_bias = bias(spec.attention_output_bias, "attention_bias");
  config.mlp_bias = bias(spec.mlp_bias, "mlp_bias");
  config.dtype = read_dtype(keys, context);
  return config;
}

std::string to_config_json(const ModelConfig& config) {
  const auto& spec = spec_of(config.family);
  std::string_view torch_dtype;
  for (const auto& entry : dtypes) {
    if (entry.dtype == config.dtype) torch_dtype = entry.torch;
  }
  std::string text = fmt::format(
      R"({{
  "architectures": ["{}"],
  "model_type": "{}",
  "num_hidden_layers": {},
  "hidden_size": {},
  "intermediate_size": {},
  "num_attention_heads": {},
  "num_key_value_heads": {},
  "head_dim": {},
  "vocab_size": {},
  "hidden_act": "silu",
  "tie_word_embeddings": {},
)",
      spec.architecture, spec.model_type, config.layers, config.hidden, config.intermediate, config.heads,
      config.kv_heads, config.head_dim, config.vocabulary, config.tied_embeddings);
  if (spec.attention_bias == Bias::by_config) text += fmt::format("  \"attention_bias\": {},\n", config.attention_bias);
  if (spec.mlp_bias == Bias::by_config) text += fmt::format("  \"mlp_bias\": {},\n", config.mlp_bias);
  return text + fmt::format("  \"torch_dtype\": \"{}\"\n}}\n", torch_dtype);
}

}  // namespace weightcast
