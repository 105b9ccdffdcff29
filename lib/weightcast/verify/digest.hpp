#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "weightcast/core/digest.hpp"
#include "weightcast/core/function_ref.hpp"
#include "weightcast/plan/transfer_plan.hpp"

/// The shard-invariant checksum: digests of the parts of a parameter add up to the digest of the whole, whatever the
/// parts. Definition and test vectors: digest.md. The same on CPU and GPU.
namespace weightcast {

/// Digest of `data`, the bytes of a parameter from byte `offset` of it on. Vectorised; allocates nothing.
Digest digest_bytes(std::span<const std::byte> data, std::uint64_t offset) noexcept;

/// Digest of so many bytes of a parameter, from its first one, which `read` brings in bounded blocks, in order. Error
/// of `read`.
Digest digest_read(std::uint64_t size_bytes, FunctionRef<void(std::uint64_t offset, std::span<std::byte> to)> read);

/// Digest of rows of a shard held at `data`, `pitch` bytes apart. `offset` is the byte offset of the first one in the
/// parameter and `parameter_pitch` the bytes from row to row there.
Digest digest_rows(const std::byte* data, std::uint64_t pitch, std::uint64_t row_bytes, std::uint64_t rows,
                   std::uint64_t offset, std::uint64_t parameter_pitch) noexcept;

/// One digest for a set of named tensors: independent of their order in memory, sensitive to names, dtypes and shapes.
/// `digests[i]` belongs to `tensors[i]`.
Digest digest_of_set(std::span<const TensorInfo> tensors, std::span<const Digest> digests);
/// Of all tensors of a model; `parameters[i]` belongs to parameter i.
Digest digest_of_model(const Model& model, std::span<const Digest> parameters);
/// The digests of a model's tensors, from those of its parameters.
std::vector<Digest> tensor_digests(const Model& model, std::span<const Digest> parameters);

/// digest_of_model() for one model again and again: what does not change is prepared once.
class ModelDigest {
 public:
  explicit ModelDigest(const Model& model);
  /// `parameters[i]` belongs to parameter i. Allocates nothing; not thread-safe.
  Digest of(std::span<const Digest> parameters) noexcept;

 private:
  std::vector<std::size_t> first_;       // parameter of each tensor, and the end
  std::vector<Digest> digests_;          // of the tensors
  std::string text_;                     // what is hashed
  std::vector<std::size_t> digests_at_;  // in text_, by tensor
};

}  // namespace weightcast
