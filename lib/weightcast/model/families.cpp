#include "weightcast/model/families.hpp"

#include <array>

namespace weightcast {
namespace {

using enum Bias;
using enum Family;

// Biases of q, k, v; of o; of the MLP; norms of heads; tied where the config says nothing. The order is Family's.
constexpr std::array<FamilySpec, 10> table{{
    {llama, "llama", "LlamaForCausalLM", by_config, by_config, by_config},
    {qwen2, "qwen2", "Qwen2ForCausalLM", always, never, never},
    {qwen3, "qwen3", "Qwen3ForCausalLM", by_config, by_config, never, true},
    {mistral, "mistral", "MistralForCausalLM", never, never, never},
    {ministral, "ministral", "MinistralForCausalLM", never, never, never},
    {ministral3, "ministral3", "Ministral3ForCausalLM", never, never, never},
    {smollm3, "smollm3", "SmolLM3ForCausalLM", by_config, by_config, by_config, false, true},
    {granite, "granite", "GraniteForCausalLM", by_config, by_config, by_config},
    {helium, "helium", "HeliumForCausalLM", by_config, never, by_config},
    {cwm, "cwm", "CwmForCausalLM", never, never, by_config},
}};

constexpr bool in_order() {
  for (std::size_t i = 0; i < table.size(); ++i) {
    if (table[i].family != static_cast<Family>(i)) return false;
  }
  return true;
}
static_assert(in_order());

}  // namespace

std::span<const FamilySpec> families() noexcept {
  return table;
}

const FamilySpec& spec_of(Family family) noexcept {
  return table[static_cast<std::size_t>(family)];
}

std::string_view name(Family family) noexcept {
  return spec_of(family).model_type;
}

}  // namespace weightcast
