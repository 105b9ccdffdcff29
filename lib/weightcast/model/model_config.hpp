#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "weightcast/model/families.hpp"
#include "weightcast/tensor/dtype.hpp"

namespace weightcast {

/// The sizes of a model, as far as sharding needs them.
struct ModelConfig {
  Family family = Family::llama;
  std::uint64_t layers = 0, hidden = 0, heads = 0, kv_heads = 0, head_dim = 0, intermediate = 0, vocabulary = 0;
  bool tied_embeddings = false;        ///< lm_head.weight is an alias of model.embed_tokens.weight
  bool attention_bias = false;         ///< q, k, v have a bias
  bool attention_output_bias = false;  ///< o_proj has one too; families.hpp: in which family, and who says so
  bool mlp_bias = false;
  DType dtype = DType::BF16;
  bool operator==(const ModelConfig&) const = default;
};

/// What a config.json is read with besides its text.
struct ConfigContext {
  std::optional<DType> weights = {};          ///< the dtype of the checkpoint's tensors, where they are known
  std::vector<std::string>* notes = nullptr;  ///< gets a line for each thing that people should know
  void note(std::string text) const;
};

/// Reads a Hugging Face config.json. Old and new spellings are taken (torch_dtype / dtype, rope settings ignored, ...);
/// missing head_dim = hidden / heads, missing num_key_value_heads = heads, missing tie_word_embeddings by the family's
/// default. The dtype is the one that is named; where none is (or "auto"), or two are, it is that of the weights, and
/// BF16 where those are not known. `architectures` may carry a wrapper's prefix (FSDPLlamaForCausalLM). What is not
/// needed may be there twice, or be NaN or Infinity. Error(bad_data) naming the key for missing, mistyped, repeated or
/// impossible values; Error(config) for a family or a quantised format that is not supported, naming the families that
/// are and the one that may be meant. `what` names the text in messages.
ModelConfig parse_model_config(std::string_view text, const std::string& what, const ConfigContext& context = {});

/// The config.json text that parse_model_config() reads back as `config`, acceptable to transformers.
std::string to_config_json(const ModelConfig& config);

/// "llama-3.2-1b", "llama-3.1-8b", "smollm2-135m", "tiny".
const std::vector<std::string>& named_shapes();

/// The config of a named shape, or of the config.json at a path: that file, a folder that holds one, a repository of a
/// Hub cache, or a safetensors file or index beside it. Error(usage) listing the names when it is neither.
ModelConfig load_model_config(const std::string& name_or_path, const ConfigContext& context = {});

}  // namespace weightcast
