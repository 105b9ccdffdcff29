#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "weightcast/model/families.hpp"
#include "weightcast/tensor/dtype.hpp"

namespace weightcast {

/// Of low-rank attention (DeepSeek's): sizes in elements.
struct LatentSizes {
  std::uint64_t query_rank = 0;  ///< 0: queries are not of low rank
  std::uint64_t key_value_rank = 0, nope_dim = 0, rope_dim = 0, value_dim = 0;
  bool operator==(const LatentSizes&) const = default;
};

/// Of a mixture of experts.
struct ExpertSizes {
  std::uint64_t count = 0;                       ///< of experts in a layer; 0: the model has none
  std::uint64_t intermediate = 0;                ///< of one expert
  std::uint64_t shared = 0;                      ///< intermediate size of what every token takes, too; 0: nothing
  std::vector<std::uint64_t> dense_layers = {};  ///< that have one MLP instead, ascending
  bool operator==(const ExpertSizes&) const = default;
  bool in_layer(std::uint64_t layer) const {
    return count > 0 && !std::binary_search(dense_layers.begin(), dense_layers.end(), layer);
  }
};

/// The sizes of a model, as far as sharding needs them.
struct ModelConfig {
  Family family = Family::llama;
  std::uint64_t layers = 0, hidden = 0, heads = 0, kv_heads = 0, head_dim = 0, intermediate = 0, vocabulary = 0;
  bool tied_embeddings = false;        ///< lm_head.weight is an alias of model.embed_tokens.weight
  bool attention_bias = false;         ///< q, k, v have a bias
  bool attention_output_bias = false;  ///< o_proj has one too; families.hpp: in which family, and who says so
  bool mlp_bias = false;
  bool query_norms = true;  ///< where the family has any
  DType dtype = DType::BF16;
  LatentSizes latent = {};
  ExpertSizes experts = {};
  std::uint64_t skipped_layers = 0;  ///< behind the last: of multi-token prediction, which a checkpoint may have
  bool wide_routers = false;         ///< routers stay in F32, as a checkpoint has them
  bool inside = false;               ///< it is the language model of a larger one ("text_config")
  bool operator==(const ModelConfig&) const = default;
};

/// What a config.json is read with besides its text.
struct ConfigContext {
  std::optional<DType> weights = {};          ///< the dtype of the checkpoint's tensors, where they are known
  std::vector<std::string>* notes = nullptr;  ///< gets a line for each thing that people should know
  bool wide_routers = false;                  ///< they have routers of experts in F32 beside it
  void note(std::string text) const;
};

/// Reads a Hugging Face config.json. Old and new spellings are taken (torch_dtype / dtype, rope settings ignored, ...);
/// missing head_dim = hidden / heads, missing num_key_value_heads = heads, missing tie_word_embeddings by the family's
/// default. The dtype is the one that is named; where none is (or "auto"), or two are, it is that of the weights, and
/// BF16 where those are not known. `architectures` may carry a wrapper's prefix (FSDPLlamaForCausalLM). Of a model with
/// a "text_config" it is that, and what that leaves out is as the larger model says, or as transformers has it by
/// default. What is not needed may be there twice, or be NaN or Infinity. Error(bad_data) naming the key for missing,
/// mistyped, repeated or impossible values; Error(config) for a family or a quantised format that is not supported,
/// naming the families that are and the one that may be meant. `what` names the text in messages.
ModelConfig parse_model_config(std::string_view text, const std::string& what, const ConfigContext& context = {});

/// "llama-3.2-1b", "llama-3.1-8b", "smollm2-135m", "tiny", "moe-20k".
const std::vector<std::string>& named_shapes();

/// The config of a named shape, or of the config.json at a path: that file, a folder that holds one, a repository of a
/// Hub cache, or a safetensors file or index beside it. Error(usage) listing the names, Error(no_input) of a path.
ModelConfig load_model_config(const std::string& name_or_path, const ConfigContext& context = {});

}  // namespace weightcast
