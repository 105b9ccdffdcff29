#include "weightcast/verify/digest.hpp"

#include <xxhash.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "weightcast/core/bytes.hpp"
#include "weightcast/core/error.hpp"
#include "weightcast/device/digest_keys.hpp"
#include "weightcast/verify/digest_kernels.hpp"

namespace weightcast {
namespace {

static_assert(std::endian::native == std::endian::little, "digest.md speaks of little-endian words");

using digest_keys::block_factor;
using digest_keys::block_words;
using digest_keys::word_key;

/// Fewer than four bytes of one word, the first of them byte `offset` of the parameter.
Digest digest_edge(const std::byte* data, std::uint64_t count, std::uint64_t offset) noexcept {
  if (count == 0) return {};
  std::uint32_t value = 0;
  for (std::uint64_t i = 0; i < count; ++i)
    value |= std::to_integer<std::uint32_t>(data[i]) << (8 * ((offset + i) % 4));
  const std::uint64_t word = offset / 4, block = word / block_words, j = word % block_words;
  return {block_factor(0, block) * (std::uint64_t{word_key(0, j)} * value),
          block_factor(1, block) * (std::uint64_t{word_key(1, j)} * value)};
}

DigestKernel best_kernel() noexcept {
  DigestKernel best = nullptr;
  for (const NamedDigestKernel& kernel : digest_kernels()) {
    if (kernel.usable) best = kernel.run;
  }
  return best;
}

void append(std::string& text, std::uint64_t value) {
  std::array<char, 8> bytes;
  std::memcpy(bytes.data(), &value, 8);
  text.append(bytes.data(), 8);
}
void append(std::string& text, std::string_view value) {
  append(text, value.size());
  text.append(value);
}

/// The text whose hash is the digest of `count` tensors, but for their digests, which belong at `digests_at`.
template <typename InfoOf>
std::string describe_set(std::size_t count, const InfoOf& info_of, std::vector<std::size_t>& digests_at) {
  std::vector<std::size_t> order(count);
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::ranges::sort(order, {}, [&](std::size_t i) -> const std::string& { return info_of(i).name; });
  std::string text;
  digests_at.resize(count);
  for (const std::size_t i : order) {
    const TensorInfo& info = info_of(i);
    append(text, info.name);
    append(text, name(info.dtype));
    append(text, info.shape.size());
    for (const std::uint64_t extent : info.shape) append(text, extent);
    digests_at[i] = text.size();
    text.append(sizeof(Digest), '\0');
  }
  return text;
}

Digest hash_set(std::string& text, std::span<const std::size_t> digests_at, std::span<const Digest> digests) noexcept {
  for (std::size_t i = 0; i < digests.size(); ++i) {
    std::memcpy(text.data() + digests_at[i], &digests[i].first, 8);
    std::memcpy(text.data() + digests_at[i] + 8, &digests[i].second, 8);
  }
  const XXH128_hash_t hash = XXH3_128bits(text.data(), text.size());
  return {hash.high64, hash.low64};
}

}  // namespace

Digest digest_rows_with(DigestKernel kernel, const std::byte* data, std::uint64_t pitch, std::uint64_t row_bytes,
                        std::uint64_t rows, std::uint64_t offset, std::uint64_t parameter_pitch) noexcept {
  if (rows > 1 && pitch == row_bytes && parameter_pitch == row_bytes) {
    row_bytes *= rows;
    rows = 1;
  }
  Digest digest;
  if (rows > 1 && parameter_pitch % 4 != 0) {  // each row begins at another place within its word
    for (std::uint64_t row = 0; row < rows; ++row) {
      digest += digest_rows_with(kernel, data + row * pitch, pitch, row_bytes, 1, offset + row * parameter_pitch,
                                 parameter_pitch);
    }
    return digest;
  }
  const std::uint64_t head = std::min(-offset % 4, row_bytes);
  const std::uint64_t words = (row_bytes - head) / 4, tail = (row_bytes - head) % 4;
  if (words > 0) digest = kernel({data + head, pitch, rows, words, (offset + head) / 4, parameter_pitch / 4});
  for (std::uint64_t row = 0; (head > 0 || tail > 0) && row < rows; ++row) {
    const std::byte* begin = data + row * pitch;
    const std::uint64_t at = offset + row * parameter_pitch;
    digest += digest_edge(begin, head, at);
    digest += digest_edge(begin + row_bytes - tail, tail, at + row_bytes - tail);
  }
  return digest;
}

Digest digest_rows(const std::byte* data, std::uint64_t pitch, std::uint64_t row_bytes, std::uint64_t rows,
                   std::uint64_t offset, std::uint64_t parameter_pitch) noexcept {
  static const DigestKernel kernel = best_kernel();
  return digest_rows_with(kernel, data, pitch, row_bytes, rows, offset, parameter_pitch);
}

Digest digest_bytes(std::span<const std::byte> data, std::uint64_t offset) noexcept {
  return digest_rows(data.data(), data.size(), data.size(), 1, offset, data.size());
}

Digest digest_read(std::uint64_t size_bytes, FunctionRef<void(std::uint64_t offset, std::span<std::byte> to)> read) {
  constexpr std::uint64_t block_bytes = 4 * mebibyte;
  std::vector<std::byte> buffer(std::min(size_bytes, block_bytes));
  Digest digest;
  for (std::uint64_t at = 0; at < size_bytes; at += block_bytes) {
    const auto block = std::span(buffer).first(std::min(block_bytes, size_bytes - at));
    read(at, block);
    digest += digest_bytes(block, at);
  }
  return digest;
}

Digest digest_of_set(std::span<const TensorInfo> tensors, std::span<const Digest> digests) {
  WEIGHTCAST_EXPECTS(tensors.size() == digests.size());
  std::vector<std::size_t> digests_at;
  auto text = describe_set(
      tensors.size(), [&](std::size_t i) -> const TensorInfo& { return tensors[i]; }, digests_at);
  return hash_set(text, digests_at, digests);
}

Digest digest_of_model(const Model& model, std::span<const Digest> digests) {
  return ModelDigest(model).of(digests);
}

std::vector<Digest> tensor_digests(const Model& model, std::span<const Digest> parameters) {
  WEIGHTCAST_EXPECTS(parameters.size() == model.parameters.size());
  std::vector<Digest> digests;
  for (std::size_t p = 0; p < parameters.size(); ++p) {
    if (model.parameters[p].row == 0) digests.emplace_back();
    digests.back() += parameters[p];
  }
  return digests;
}

ModelDigest::ModelDigest(const Model& model) : first_(model.tensors()), digests_(first_.size()) {
  text_ = describe_set(
      first_.size(), [&](std::size_t i) -> const TensorInfo& { return model.parameters[first_[i]].info; }, digests_at_);
  first_.push_back(model.parameters.size());
}

Digest ModelDigest::of(std::span<const Digest> parameters) noexcept {
  WEIGHTCAST_EXPECTS(parameters.size() == first_.back());
  for (std::size_t i = 0; i < digests_.size(); ++i) {
    digests_[i] = {};
    for (auto p = first_[i]; p < first_[i + 1]; ++p) digests_[i] += parameters[p];
  }
  return hash_set(text_, digests_at_, digests_);
}

}  // namespace weightcast
