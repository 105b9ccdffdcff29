#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "harness/model_bytes.hpp"
#include "weightcast/device/elements.hpp"
#include "weightcast/trainer/training_tensors.hpp"

/// Training loops of several ranks, each with its pieces of one model.
namespace weightcast::harness {

/// Every parameter in full, random bits of this dtype.
inline std::vector<std::vector<std::byte>> whole_masters(const Model& model, DType dtype, std::uint64_t seed) {
  std::vector<std::vector<std::byte>> masters;
  for (const auto& rule : model.parameters)
    masters.push_back(random_bytes(*rule.info.elements() * element_bytes(dtype), seed + masters.size()));
  return masters;
}

/// What is sent of them: F32 is rounded, what has the model's dtype is sent as it is.
inline std::vector<std::vector<std::byte>> as_sent(const std::vector<std::vector<std::byte>>& masters, DType given,
                                                   DType wire) {
  auto sent = masters;
  for (std::size_t p = 0; given != wire && p < masters.size(); ++p) {
    sent[p].resize(masters[p].size() / 2);
    narrow(wire == DType::BF16 ? NarrowFloat::bf16 : NarrowFloat::f16, sent[p].data(), masters[p].data(),
           masters[p].size() / 4);
  }
  return sent;
}

/// A rectangle of a parameter, its rows `pitch` bytes apart.
inline std::vector<std::byte> cut(const TensorInfo& info, const std::vector<std::byte>& whole, const Slice& slice,
                                  std::uint64_t width, std::uint64_t pitch) {
  const auto columns = matrix_of(info).columns;
  std::vector<std::byte> bytes(slice.rows * pitch, std::byte{0x5A});
  for (std::uint64_t row = 0; row < slice.rows; ++row) {
    std::memcpy(bytes.data() + row * pitch, whole.data() + ((slice.row + row) * columns + slice.column) * width,
                slice.columns * width);
  }
  return bytes;
}

/// One rank's tensors, the last piece first; every `padded`-th has gaps between its rows, and every `on_gpu`-th is on
/// the GPU (0: none). Pieces that are a whole parameter do not say so.
struct PieceLoop {
  PieceLoop(const TransferPlan& plan, std::size_t rank, const std::vector<std::vector<std::byte>>& masters, DType given,
            std::size_t padded, std::size_t on_gpu = 0) {
    const auto chosen = [&](std::size_t every) { return every != 0 && tensors.size() % every == 0; };
    const auto& pieces = plan.sources.ranks[rank].pieces;
    const auto width = element_bytes(given);
    data.reserve(pieces.size());
    for (auto piece = pieces.rbegin(); piece != pieces.rend(); ++piece) {
      const auto& slice = piece->slice;
      const auto& info = plan.model.parameters[piece->parameter_index].info;
      const auto pitch = width * (slice.columns + (chosen(padded) ? 3 : 0));
      TrainingTensor tensor{info, nullptr, {}};
      tensor.info.dtype = given;
      tensor.info.shape = {slice.rows, slice.columns};
      std::vector<std::uint64_t> offsets{slice.row, slice.column};
      tensor.strides_bytes = {static_cast<std::int64_t>(pitch), static_cast<std::int64_t>(width)};
      if (info.shape.size() == 1) {
        tensor.info.shape.pop_back();
        offsets.pop_back();
        tensor.strides_bytes.pop_back();
      }
      if (tensor.info.shape != info.shape) {
        tensor.offsets = offsets;
        tensor.full_shape = info.shape;
      }
      data.push_back(cut(info, masters[piece->parameter_index], slice, width, pitch));
      tensor.data = data.back().data();
      if (chosen(on_gpu)) {
        tensor.placement = {MemoryKind::cuda, 0};
        buffers.push_back(Buffer::allocate(tensor.placement, data.back().size(), false, "a test"));
        write_region(buffers.back().region(), 0, data.back());
        tensor.data = buffers.back().region().data;
      }
      tensors.push_back(tensor);
    }
  }

  std::vector<std::vector<std::byte>> data;
  std::vector<Buffer> buffers;
  std::vector<TrainingTensor> tensors;
};

/// Where a source region that was filled differs from what all ranks together send, by the label of a piece; empty when
/// it does not.
inline std::string difference(const TransferPlan& plan, std::size_t rank, std::span<const std::byte> region,
                              const std::vector<std::vector<std::byte>>& sent) {
  for (const auto& piece : plan.sources.ranks[rank].pieces) {
    const auto& info = plan.model.parameters[piece.parameter_index].info;
    const auto expected = cut(info, sent[piece.parameter_index], piece.slice, element_bytes(info.dtype), piece.pitch);
    if (std::memcmp(region.data() + piece.offset, expected.data(), expected.size()) != 0)
      return label_of(info, piece.slice);
  }
  return {};
}

/// The same of what ranks claim: which parameter's digests do not add up to that of the parameter.
inline std::string difference(const TransferPlan& plan, std::span<const SourceClaim* const> claims,
                              const std::vector<std::vector<std::byte>>& sent) {
  for (std::size_t p = 0; p < plan.model.parameters.size(); ++p) {
    Digest sum;
    for (const auto* claim : claims) {
      for (std::size_t t = 0; t < plan.tp; ++t) {
        if (!plan.copy(t, p)) sum += claim->shard(t, p);
      }
    }
    if (sum != digest_bytes(sent[p], 0)) return plan.model.parameters[p].info.name;
  }
  return {};
}

}  // namespace weightcast::harness
