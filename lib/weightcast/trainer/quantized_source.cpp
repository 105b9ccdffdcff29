#include "weightcast/trainer/quantized_source.hpp"

#include <algorithm>
#include <cstring>

#include "weightcast/core/error.hpp"
#include "weightcast/device/quantize.hpp"
#include "weightcast/trainer/training_pieces.hpp"

namespace weightcast {
namespace {

class QuantizedSource final : public WeightSource {
 public:
  QuantizedSource(const Model& quantized, const Model& plain, std::unique_ptr<WeightSource> weights)
      : model_(&quantized), plain_(&plain), weights_(std::move(weights)) {
    const auto quantization = quantized.format.quantization;
    for (std::size_t p = 0; p < quantized.parameters.size(); ++p) {
      const auto& info = quantized.parameters[p].info;
      const auto index = plain.find(info.name);
      if (index < 0) continue;  // a scale: its matrix finds it
      given_[p].plain = static_cast<std::size_t>(index);
      if (info.dtype != DType::F8_E4M3) continue;
      given_[p].part = Part::elements;
      const auto scale = static_cast<std::size_t>(quantized.find(scale_name(info.name, quantization)));
      for (auto s = scale; s < quantized.tensor_end(scale); ++s)
        given_[s] = {static_cast<std::size_t>(index), Part::scales};
    }
    kind_ = scale_kind(quantization);
  }

  void read(std::size_t parameter, std::uint64_t offset, std::span<std::byte> destination) const override {
    const auto& [plain, part] = given_[parameter];
    if (part == Part::all) return weights_->read(plain, offset, destination);
    const auto& info = plain_->parameters[plain].info;
    const auto [rows, columns] = matrix_of(info);
    const auto width = element_bytes(info.dtype), band = kind_ == ScaleKind::block ? scale_block : std::uint64_t{1};
    const auto scales = scale_columns(kind_, columns);
    // Bytes of a band in what is asked for.
    const auto band_bytes = part == Part::elements ? band * columns : scales * sizeof(float);
    const auto first = offset / band_bytes, end = (offset + destination.size() + band_bytes - 1) / band_bytes;
    const auto most = std::max<std::uint64_t>(step_elements / (band * columns), 1);  // bands at a time
    Memory memory;
    for (auto at = first; at < end; at += most) {
      const auto row = at * band, count = std::min(std::min(most, end - at) * band, rows - row);
      memory.given.resize(count * columns * width);
      memory.elements.resize(count * columns);
      memory.scales.resize(scale_rows(kind_, count) * scales);
      weights_->read(plain, row * columns * width, memory.given);
      quantize(kind_, {memory.given.data(), wide_of(info.dtype).value(), count, columns, columns},
               {memory.elements.data(), columns, memory.scales.data(), scales});
      const auto made = part == Part::elements ? std::span<const std::byte>(memory.elements)
                                               : std::as_bytes(std::span<const float>(memory.scales));
      copy_part(made, at * band_bytes, offset, destination);
    }
  }

  std::string describe() const override { return weights_->describe(); }
  std::vector<std::string> notes() const override { return weights_->notes(); }

 private:
  enum class Part : std::uint8_t { all, elements, scales };
  /// Of a parameter: which of the plain model's it is or is made of.
  struct Given {
    std::size_t plain = 0;
    Part part = Part::all;
  };
  struct Memory {
    std::vector<std::byte> given, elements;
    std::vector<float> scales;
  };
  static constexpr std::uint64_t step_elements = 4 * mebibyte;

  /// What of `made`, bytes from `begin` on, belongs into `destination`, bytes from `offset` on.
  static void copy_part(std::span<const std::byte> made, std::uint64_t begin, std::uint64_t offset,
                        std::span<std::byte> destination) {
    const auto from = std::max(begin, offset), to = std::min(begin + made.size(), offset + destination.size());
    if (from < to) std::memcpy(destination.data() + (from - offset), made.data() + (from - begin), to - from);
  }

  const Model *model_, *plain_;
  std::unique_ptr<WeightSource> weights_;
  ScaleKind kind_ = ScaleKind::block;
  std::vector<Given> given_ = std::vector<Given>(model_->parameters.size());
};

}  // namespace

std::unique_ptr<WeightSource> quantized_source(const Model& quantized, const Model& plain,
                                               std::unique_ptr<WeightSource> weights) {
  return std::make_unique<QuantizedSource>(quantized, plain, std::move(weights));
}

}  // namespace weightcast
