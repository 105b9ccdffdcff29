#include "weightcast/model/match_checkpoint.hpp"

#include <fmt/format.h>
#include <fnmatch.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <map>
#include <unordered_map>

#include "weightcast/core/bytes.hpp"
#include "weightcast/core/error.hpp"

namespace weightcast {
namespace {

constexpr std::string_view head_name = "lm_head.weight", embedding_name = "model.embed_tokens.weight";

/// What wrappers put before a name: `lead` stands where `instead` belongs.
struct Lead {
  std::string_view lead, instead;
};
constexpr std::array<Lead, 8> leads{{{"", ""},
                                     {"model.language_model.", "model."},
                                     {"language_model.", ""},
                                     {"language_model.", "model."},
                                     {"pretrained_model.", ""},
                                     {"base_model.model.", ""},
                                     {"model.", ""},
                                     {"", "model."}}};

/// The name without what torch.compile, FSDP and activation checkpointing put into it anywhere, and DDP before it.
std::string unwrapped(std::string_view name) {
  std::string result(name);
  for (const std::string_view part : {"_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module."}) {
    for (auto at = result.find(part); at != result.npos; at = result.find(part, at)) {
      if (at == 0 || result[at - 1] == '.') {
        result.erase(at, part.size());
      } else {
        ++at;
      }
    }
  }
  while (result.starts_with("module.")) result.erase(0, 7);
  return result;
}

/// State of modules and of training that is no weight of the model.
bool is_bookkeeping(std::string_view name) noexcept {
  constexpr std::array<std::string_view, 7> ends{".k_scale",
                                                 ".v_scale",
                                                 ".q_scale",
                                                 ".kv_scale",
                                                 ".prob_output_scale",
                                                 ".k_proj.output_scale",
                                                 ".v_proj.output_scale"};
  if (name.ends_with("._extra_state") || name == "_extra_state") return true;
  for (const std::string_view head : {"v_head.", "value_head.", "score."}) {
    if (name.starts_with(head)) return true;
  }
  return std::any_of(ends.begin(), ends.end(), [&](auto end) { return name.ends_with(end); });
}

class Matcher {
 public:
  Matcher(const Model& model, std::span<const TensorInfo> tensors, const std::string& what,
          std::span<const std::string> ignore)
      : model_(model), tensors_(tensors), what_(what), ignore_(ignore) {
    for (const auto& rule : model.parameters) known_.emplace(rule.info.name, &rule.info);
    if (model.config.tied_embeddings) known_.emplace(head_name, &model.parameters.front().info);
  }

  CheckpointMatch match() {
    for (const auto& tensor : tensors_) names_.push_back(unwrapped(tensor.name));
    choose_lead();
    refuse_other_namings();
    for (std::size_t i = 0; i < tensors_.size(); ++i) take(i);
    say_what_was_done();
    const auto found = match_tensors(model_, taken_, what_);
    const auto original = [&](std::ptrdiff_t index) {
      return index < 0 ? index : static_cast<std::ptrdiff_t>(index_[static_cast<std::size_t>(index)]);
    };
    for (const auto index : found.tensor_index) result_.tensor_index.push_back(original(index));
    result_.alias = original(found.alias);
    std::vector<std::string> skipped;
    for (const auto& name : found.skipped) {
      if (name != head_name) skipped.push_back(name);
    }
    if (!skipped.empty()) result_.notes.push_back("left out, computed by the engine: " + list_some(skipped));
    say_rounding();
    return std::move(result_);
  }

 private:
  bool known(const std::string& name) const { return known_.contains(name); }

  static bool has_lead(const Lead& lead, const std::string& name) {
    return name.starts_with(lead.lead) && (lead.lead == lead.instead || !lead.lead.empty() || name != head_name);
  }
  static std::string renamed(const Lead& lead, const std::string& name) {
    return std::string(lead.instead) + name.substr(lead.lead.size());
  }

  /// The lead under which most names are known; none when that is as good.
  void choose_lead() {
    std::size_t most = 0;
    for (const auto& lead : leads) {
      const auto count = static_cast<std::size_t>(std::count_if(names_.begin(), names_.end(), [&](const auto& name) {
        return has_lead(lead, name) && known(renamed(lead, name));
      }));
      if (count > most) {
        most = count;
        lead_ = lead;
      }
    }
    recognised_ = most;
  }

  /// Where names have nothing to do with the model's, one line says more than two for each of them.
  void refuse_other_namings() const {
    for (const auto& name : names_) {
      if ((name.find(".lora_A.") != name.npos || name.find(".lora_B.") != name.npos) && !is_ignored(name, ignore_)) {
        throw Error(ExitCode::bad_data,
                    fmt::format("{} holds an adapter that is not merged: {}", what_, printable(name)),
                    "merge it into the weights (in PEFT: merge_and_unload()) and save those");
      }
    }
    const auto expected = model_.tensor_count();
    if (2 * recognised_ >= expected) return;
    std::map<std::string, std::size_t> prefixes;
    for (const auto& name : names_) {
      if (name == "tok_embeddings.weight") {
        throw Error(ExitCode::bad_data,
                    fmt::format("{} has the names of another format, such as {}", what_, printable(name)),
                    "get the checkpoint in the format of Hugging Face transformers");
      }
      for (auto dot = name.find('.'); dot != name.npos; dot = name.find('.', dot + 1)) {
        const auto rest = name.substr(dot + 1);
        if (!known(rest) && !known("model." + rest)) continue;
        ++prefixes[name.substr(0, dot + 1)];
        break;
      }
    }
    const auto shared = std::max_element(prefixes.begin(), prefixes.end(),
                                         [](const auto& a, const auto& b) { return a.second < b.second; });
    if (shared == prefixes.end() || 2 * shared->second < expected) return;
    throw Error(ExitCode::bad_data,
                fmt::format("{}: the names of {} parameters begin with \"{}\", a prefix that is not known", what_,
                            shared->second, printable(shared->first)),
                "save the checkpoint without this prefix");
  }

  void take(std::size_t i) {
    const auto& stored = tensors_[i];
    const bool led = has_lead(lead_, names_[i]);
    auto name = led ? renamed(lead_, names_[i]) : names_[i];
    if (is_ignored(stored.name, ignore_) || is_ignored(name, ignore_)) {
      // Of a tie that has both names, the head may go.
      const bool spare = name == head_name && model_.config.tied_embeddings && has_embedding();
      if (known(name) && !spare) {
        throw Error(ExitCode::usage,
                    fmt::format("--ignore leaves out {}, which the model needs", printable(stored.name)),
                    "write patterns that name less");
      }
      ignored_.push_back(stored.name);
    } else if (!known(name) && (is_bookkeeping(name) || is_bookkeeping(names_[i]))) {
      bookkeeping_.push_back(stored.name);
    } else if (is_of_skipped_layer(name)) {
      predictors_.push_back(stored.name);
    } else if (model_.config.inside && !led && !known(name)) {
      outside_.push_back(stored.name);
    } else {
      // Beside a lead that the others have, only the head goes without; anything else keeps a name that is unknown.
      if (!led && name != head_name) name = fmt::format("{} (without {})", names_[i], lead_.lead);
      if (name != stored.name && renamed_++ == 0) example_ = fmt::format("{} is {}", printable(stored.name), name);
      taken_.push_back({name, type_to_be(name, stored), stored.shape});
      index_.push_back(i);
    }
  }

  /// Of a layer behind the last that predicts more tokens: the engine's weights end before it.
  bool is_of_skipped_layer(std::string_view name) const {
    constexpr std::string_view layers = "model.layers.";
    if (model_.config.skipped_layers == 0 || !name.starts_with(layers)) return false;
    std::uint64_t layer = 0;
    const auto* const end = name.data() + name.size();
    const auto [rest, status] = std::from_chars(name.data() + layers.size(), end, layer);
    return status == std::errc() && rest != end && *rest == '.' && layer >= model_.config.layers &&
           layer - model_.config.layers < model_.config.skipped_layers;
  }

  bool has_embedding() const {
    return std::any_of(names_.begin(), names_.end(), [&](const auto& name) {
      return (has_lead(lead_, name) ? renamed(lead_, name) : name) == embedding_name;
    });
  }

  /// The model's dtype where the tensor can be converted to it.
  DType type_to_be(const std::string& name, const TensorInfo& stored) const {
    const auto parameter = known_.find(name);
    if (parameter == known_.end() || !is_weight_type(stored.dtype)) return stored.dtype;
    const auto& expected = *parameter->second;
    return expected.shape == stored.shape && is_weight_type(expected.dtype) ? expected.dtype : stored.dtype;
  }

  void say_what_was_done() {
    if (renamed_ > 0)
      result_.notes.push_back(fmt::format("{} names have a prefix that is known and stripped: {}", renamed_, example_));
    if (!ignored_.empty()) result_.notes.push_back("left out by --ignore: " + list_some(ignored_));
    if (!predictors_.empty())
      result_.notes.push_back("left out, of layers that predict further tokens: " + list_some(predictors_));
    if (!outside_.empty()) result_.notes.push_back("left out, not of the language model: " + list_some(outside_));
    if (!bookkeeping_.empty()) result_.notes.push_back("left out, no weights of the model: " + list_some(bookkeeping_));
  }

  void say_rounding() {
    std::map<std::pair<DType, DType>, std::size_t> others;  // of tensors that are the first for what is the second
    for (std::size_t p = 0; p < result_.tensor_index.size(); ++p) {
      const auto stored = tensors_[static_cast<std::size_t>(result_.tensor_index[p])].dtype;
      const auto& rule = model_.parameters[p];
      if (stored != rule.info.dtype && rule.row == 0) ++others[{stored, rule.info.dtype}];
    }
    const auto all = model_.tensor_count();
    for (auto i = others.begin(); i != others.end(); ++i) {
      const auto& [stored, sent] = i->first;
      const auto next = std::next(i);
      result_.rounding += fmt::format("{}{} of {} parameters are {}", result_.rounding.empty() ? "" : ", ", i->second,
                                      all, name(stored));
      // One verb for all that become the same.
      if (next == others.end() || next->first.second != sent) {
        result_.rounding +=
            fmt::format(": {} {}", sent == DType::F32 ? "widened to" : "rounded to the nearest", name(sent));
      }
    }
  }

  const Model& model_;
  std::span<const TensorInfo> tensors_;
  const std::string& what_;
  std::span<const std::string> ignore_;
  std::unordered_map<std::string_view, const TensorInfo*> known_;  // by the names that a checkpoint may have
  std::vector<std::string> names_;                                 // of each tensor, without wrappers
  Lead lead_ = leads.front();
  std::size_t recognised_ = 0;
  std::vector<TensorInfo> taken_;   // what is matched, under the model's names
  std::vector<std::size_t> index_;  // of each, in tensors_
  std::vector<std::string> ignored_, bookkeeping_, predictors_, outside_;
  std::size_t renamed_ = 0;
  std::string example_;
  CheckpointMatch result_;
};

}  // namespace

TensorMatch match_tensors(const Model& model, std::span<const TensorInfo> tensors, const std::string& what) {
  TensorMatch match;
  std::vector<std::string> problems;
  const auto compare = [&](const TensorInfo& found, const TensorInfo& expected) {
    if (found.dtype == expected.dtype && found.shape == expected.shape) return;
    problems.push_back(
        fmt::format("{} is {}, expected {}", printable(found.name), found.describe(), expected.describe()));
  };

  std::map<std::string_view, std::ptrdiff_t> by_name;
  for (const auto& tensor : tensors) {
    if (is_rotary_buffer(tensor.name)) {
      match.skipped.push_back(tensor.name);
    } else if (!by_name.emplace(tensor.name, &tensor - tensors.data()).second) {
      problems.push_back(fmt::format("{} appears twice", printable(tensor.name)));
    }
  }
  for (const auto& rule : model.parameters) {
    if (rule.row > 0) {  // of the tensor that was just matched
      match.tensor_index.push_back(match.tensor_index.back());
      continue;
    }
    auto found = by_name.find(rule.info.name);
    if (found == by_name.end() && model.config.tied_embeddings && rule.info.name == embedding_name) {
      found = by_name.find(head_name);
    }
    if (found == by_name.end()) {
      match.tensor_index.push_back(-1);
      problems.push_back(fmt::format("{} is missing", rule.info.name));
      continue;
    }
    compare(tensors[static_cast<std::size_t>(found->second)], rule.info);
    match.tensor_index.push_back(found->second);
    by_name.erase(found);
  }
  for (const auto& [name, index] : by_name) {
    if (model.config.tied_embeddings && name == head_name) {
      compare(tensors[static_cast<std::size_t>(index)], model.parameters.front().info);
      match.alias = index;
      match.skipped.emplace_back(name);
    } else {
      problems.push_back(
          fmt::format("{} is unknown to {} models", printable(name), weightcast::name(model.config.family)));
    }
  }
  if (problems.empty()) return match;

  const std::size_t count = problems.size();
  throw Error(ExitCode::bad_data,
              fmt::format("{} does not fit the model: {} difference{}\n  {}", what, count, count == 1 ? "" : "s",
                          list_lines(problems)),
              "check that the checkpoint belongs to this config.json");
}

CheckpointMatch match_checkpoint(const Model& model, std::span<const TensorInfo> tensors, const std::string& what,
                                 std::span<const std::string> ignore) {
  return Matcher(model, tensors, what, ignore).match();
}

bool is_rotary_buffer(std::string_view name) noexcept {
  constexpr std::array<std::string_view, 3> buffers{"rotary_emb.inv_freq", "rotary_emb.cos_cached",
                                                    "rotary_emb.sin_cached"};
  return std::any_of(buffers.begin(), buffers.end(), [&](auto buffer) { return name.ends_with(buffer); });
}

bool is_weight_type(DType dtype) noexcept {
  return dtype == DType::F32 || dtype == DType::F16 || dtype == DType::BF16;
}

std::optional<DType> dtype_of_weights(std::span<const TensorInfo> tensors) {
  std::map<DType, std::uint64_t> bytes;
  for (const auto& tensor : tensors) {
    if (is_weight_type(tensor.dtype)) bytes[tensor.dtype] += tensor.size_bytes().value_or(0);
  }
  const auto most =
      std::max_element(bytes.begin(), bytes.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  return most == bytes.end() ? std::nullopt : std::optional(most->first);
}

bool has_wide_routers(std::span<const TensorInfo> tensors) {
  return dtype_of_weights(tensors) != DType::F32 && std::ranges::any_of(tensors, [](const TensorInfo& tensor) {
           return tensor.dtype == DType::F32 && tensor.shape.size() == 2 &&
                  (tensor.name.ends_with(".gate.weight") || tensor.name.ends_with(".router.weight"));
         });
}

bool is_ignored(const std::string& name, std::span<const std::string> ignore) {
  return std::any_of(ignore.begin(), ignore.end(),
                     [&](const auto& pattern) { return ::fnmatch(pattern.c_str(), name.c_str(), 0) == 0; });
}

}  // namespace weightcast
