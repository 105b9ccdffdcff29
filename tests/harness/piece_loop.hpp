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

/// What a loop whose weights are of type `given` has a parameter in: what is sent in F32 it has in F32, too.
inline DType given_for(const ParameterRule& rule, DType given) {
  return rule.info.dtype == DType::F32 ? DType::F32 : given;
}

/// Of every parameter its tensor in full, random bits of this dtype.
inline std::vector<std::vector<std::byte>> whole_masters(const Model& model, DType dtype, std::uint64_t seed) {
  std::vector<std::vector<std::byte>> masters;
  for (const auto& rule : model.parameters) {
    if (rule.row > 0) {
      masters.push_back(masters.back());
      continue;
    }
    const auto size_bytes = *rule.info.elements() * element_bytes(given_for(rule, dtype));
    masters.push_back(random_bytes(size_bytes, seed + masters.size()));
  }
  return masters;
}

/// What is sent of them: F32 is rounded, what has the parameter's dtype is sent as it is.
inline std::vector<std::vector<std::byte>> as_sent(const Model& model,
                                                   const std::vector<std::vector<std::byte>>& masters, DType given) {
  auto sent = masters;
  for (std::size_t p = 0; p < masters.size(); ++p) {
    const auto wire = model.parameters[p].info.dtype;
    if (given_for(model.parameters[p], given) == wire) continue;
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
/// the GPU (0: none). Every `joined`-th takes in those before it that are rows of the same tensor, up to its own (0:
/// none): a fused projection, experts of a stack. What is a whole tensor does not say so.
struct PieceLoop {
  PieceLoop(const TransferPlan& plan, std::size_t rank, const std::vector<std::vector<std::byte>>& masters, DType given,
            std::size_t padded, std::size_t on_gpu = 0, std::size_t joined = 0) {
    const auto chosen = [&](std::size_t every) { return every != 0 && tensors.size() % every == 0; };
    const auto& pieces = plan.sources.ranks[rank].pieces;
    data.reserve(pieces.size());
    for (auto piece = pieces.rbegin(); piece != pieces.rend(); ++piece) {
      const auto& rule = plan.model.parameters[piece->parameter_index];
      const auto& info = rule.info;
      auto slice = piece->slice;
      while (chosen(joined) && std::next(piece) != pieces.rend() &&
             continues(plan.model, *std::next(piece), *piece, slice)) {
        ++piece;
        slice.row -= piece->slice.rows;
        slice.rows += piece->slice.rows;
      }
      const auto width = element_bytes(given_for(rule, given));
      const auto pitch = width * (slice.columns + (chosen(padded) ? 3 : 0));
      TrainingTensor tensor{info, nullptr, {}};
      tensor.info.dtype = given_for(rule, given);
      tensor.info.shape = {slice.rows, slice.columns};
      std::vector<std::uint64_t> offsets{slice.row, slice.column};
      tensor.strides_bytes = {static_cast<std::int64_t>(pitch), static_cast<std::int64_t>(width)};
      if (info.shape.size() == 1) {
        tensor.info.shape.pop_back();
        offsets.pop_back();
        tensor.strides_bytes.pop_back();
      } else if (info.shape.size() == 3) {  // some whole matrices, or a part of one
        const auto each = info.shape[1], matrices = std::max<std::uint64_t>(slice.rows / each, 1);
        tensor.info.shape = {matrices, slice.rows / matrices, slice.columns};
        offsets = {slice.row / each, slice.row % each, slice.column};
        tensor.strides_bytes.insert(tensor.strides_bytes.begin(), static_cast<std::int64_t>(pitch * each));
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

  /// Whether `piece` is the rows before `slice`, which begins with `next`, of the parameter before in the same tensor:
  /// whole ones of a stack.
  static bool continues(const Model& model, const Piece& piece, const Piece& next, const Slice& slice) {
    if (next.parameter_index != piece.parameter_index + 1) return false;
    const auto& rule = model.parameters[piece.parameter_index];
    const auto end = rule.row + rule.rows;
    const bool whole = rule.info.shape.size() < 3 || (piece.slice.rows == rule.rows && slice.rows % rule.rows == 0);
    return model.tensor_end(piece.parameter_index) > piece.parameter_index + 1 && end == slice.row && whole &&
           piece.slice.row + piece.slice.rows == end && piece.slice.column == slice.column &&
           piece.slice.columns == slice.columns;
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
    const auto& rule = plan.model.parameters[p];
    if (sum != section_digest(rule, sent[p])) return rule.info.name;
  }
  return {};
}

}  // namespace weightcast::harness
