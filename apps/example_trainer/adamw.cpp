#include "adamw.hpp"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>

#include "weightcast/core/parallel.hpp"

namespace weightcast {
namespace {

constexpr std::uint64_t chunk_elements = 1 << 20;

/// A number from about a normal distribution of mean 0 and deviation 1, made of a counter: the sum of four 16-bit
/// uniform numbers.
float random_normal(std::uint64_t counter) noexcept {
  std::uint64_t z = (counter + 1) * 0x9e3779b97f4a7c15;
  z = (z ^ (z >> 32)) * 0xd6e8feb86659fd93;
  z ^= z >> 32;
  const auto sum = static_cast<float>((z & 0xffff) + (z >> 16 & 0xffff) + (z >> 32 & 0xffff) + (z >> 48));
  return (sum / 65536.0f - 2.0f) * 1.7320508f;
}

/// The bits that are sent for `value`.
std::uint32_t bits_on_wire(DType dtype, float value) noexcept {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if (dtype == DType::BF16) return bf16_of(bits);
  return dtype == DType::F16 ? f16_of(bits) : bits;
}

}  // namespace

AdamW::AdamW(const Model& model, Placement placement, double learning_rate)
    : learning_rate_(static_cast<float>(learning_rate)) {
  for (const auto first : model.tensors()) {
    const auto& rule = model.parameters[first];
    dtypes_.push_back(rule.info.dtype);
    const auto elements = *rule.info.elements();
    auto& tensor = state_.emplace_back(
        Tensor{std::vector<float>(elements), std::vector<float>(elements), std::vector<float>(elements), {}});
    const float mean = rule.info.shape.size() == 1 && rule.info.name.ends_with("norm.weight") ? 1.0f : 0.0f;
    parallel_for((elements + chunk_elements - 1) / chunk_elements, available_cores(), [&](std::size_t chunk) {
      const auto end = std::min(elements, (chunk + 1) * chunk_elements);
      for (auto i = chunk * chunk_elements; i < end; ++i)
        tensor.master[i] = mean + 0.02f * random_normal(elements_ + i);
    });
    elements_ += elements;
    TrainingTensor described{rule.info, tensor.master.data(), placement};
    described.info.dtype = DType::F32;
    if (placement.kind == MemoryKind::cuda) {
      tensor.on_gpu = Buffer::allocate(placement, 4 * elements, false, "fp32 masters");
      described.data = tensor.on_gpu.region().data;
    }
    tensors_.push_back(described);
  }
}

double AdamW::step() {
  ++steps_;
  std::uint64_t changed = 0;
  for (std::size_t p = 0; p < state_.size(); ++p) {
    const std::uint64_t elements = state_[p].master.size();
    std::atomic<std::uint64_t> changed_here{0};
    parallel_for((elements + chunk_elements - 1) / chunk_elements, available_cores(), [&](std::size_t chunk) {
      const auto first = chunk * chunk_elements;
      changed_here += step_range(p, first, std::min(chunk_elements, elements - first));
    });
    changed += changed_here;
    if (tensors_[p].placement.kind == MemoryKind::cuda)
      write_region(state_[p].on_gpu.region(), 0, std::as_bytes(std::span(state_[p].master)));
  }
  return static_cast<double>(changed) / static_cast<double>(elements_);
}

std::uint64_t AdamW::step_range(std::size_t p, std::uint64_t first, std::uint64_t count) {
  constexpr float beta1 = 0.9f, beta2 = 0.999f, epsilon = 1e-8f, decay = 0.01f, gradient_scale = 1e-3f;
  const auto correct1 = static_cast<float>(1 / (1 - std::pow(beta1, static_cast<double>(steps_))));
  const auto correct2 = static_cast<float>(1 / (1 - std::pow(beta2, static_cast<double>(steps_))));
  auto& [master, first_moment, second_moment, on_gpu] = state_[p];
  std::uint64_t changed = 0;
  for (auto i = first; i < first + count; ++i) {
    const float gradient = gradient_scale * random_normal((steps_ << 48) + (p << 34) + i);
    float &weight = master[i], &m = first_moment[i], &v = second_moment[i];
    const auto before = bits_on_wire(dtypes_[p], weight);
    m += (1 - beta1) * (gradient - m);
    v += (1 - beta2) * (gradient * gradient - v);
    weight -= learning_rate_ * (m * correct1 / (std::sqrt(v * correct2) + epsilon) + decay * weight);
    changed += bits_on_wire(dtypes_[p], weight) != before ? 1 : 0;
  }
  return changed;
}

std::vector<std::byte> AdamW::rounded(std::size_t p) const {
  const auto width = element_bytes(dtypes_[p]);
  const auto& master = state_[p].master;
  std::vector<std::byte> result(master.size() * width);
  for (std::size_t i = 0; i < master.size(); ++i) {
    const auto value = bits_on_wire(dtypes_[p], master[i]);
    std::memcpy(result.data() + i * width, &value, width);
  }
  return result;
}

}  // namespace weightcast
