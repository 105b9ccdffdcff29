#include "weightcast/verify/digest.hpp"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <sstream>

#include "weightcast/core/file.hpp"
#include "weightcast/device/digest_keys.hpp"
#include "weightcast/verify/digest_kernels.hpp"

namespace weightcast {
namespace {

using Bytes = std::vector<std::byte>;

/// The definition of digest.md, byte by byte.
Digest naive_digest(std::span<const std::byte> data, std::uint64_t offset) {
  Digest sum;
  for (std::size_t i = 0; i < data.size(); ++i) {
    const std::uint64_t position = offset + i, word = position / 4, block = word / 256;
    const auto value = std::uint64_t{std::to_integer<std::uint8_t>(data[i])} << (8 * (position % 4));
    sum += Digest{digest_keys::block_factor(0, block) * digest_keys::word_key(0, word % 256) * value,
                  digest_keys::block_factor(1, block) * digest_keys::word_key(1, word % 256) * value};
  }
  return sum;
}

Bytes random_bytes(std::size_t size, std::uint64_t seed = 1) {
  Bytes data(size);
  for (std::size_t i = 0; i < size; ++i)
    data[i] = static_cast<std::byte>(digest_keys::splitmix64(seed * size + i) >> 56);
  return data;
}

Bytes bytes_of(const std::string& data, std::size_t size) {
  Bytes bytes(size);
  for (std::size_t i = 0; i < size; ++i) {
    bytes[i] = data == "ramp" ? static_cast<std::byte>((7 + 131 * i + i / 256) % 256)
                              : static_cast<std::byte>(std::strtoul(data.substr(2 * i, 2).c_str(), nullptr, 16));
  }
  return bytes;
}

/// The rows of the first table after `heading` in digest.md, without their backquotes.
std::vector<std::vector<std::string>> documented_table(const std::string& heading) {
  std::istringstream text(read_text_file(WEIGHTCAST_SOURCE_DIR "/lib/weightcast/verify/digest.md", 1 << 20));
  std::string line;
  while (line != heading && std::getline(text, line)) {
  }
  std::vector<std::vector<std::string>> rows;
  while (std::getline(text, line) && (line.starts_with('|') || rows.empty())) {
    if (!line.starts_with('|')) continue;
    std::istringstream cells(line.substr(1));
    auto& row = rows.emplace_back();
    for (std::string cell; std::getline(cells, cell, '|');) {
      std::erase_if(cell, [](char c) { return c == '`'; });
      cell.erase(0, cell.find_first_not_of(' '));
      cell.erase(cell.find_last_not_of(' ') + 1);
      row.push_back(cell);
    }
  }
  if (rows.size() > 2) rows.erase(rows.begin(), rows.begin() + 2);
  return rows;
}

TEST(Digest, EqualsTheDocumentedVectors) {
  const auto rows = documented_table("## Test vectors");
  ASSERT_GE(rows.size(), 10U);
  for (const auto& row : rows) {
    ASSERT_EQ(row.size(), 4U);
    const Bytes data = bytes_of(row[0], std::stoul(row[1]));
    EXPECT_EQ(digest_bytes(data, std::stoull(row[2])).hex(), row[3]) << row[0] << " at " << row[2];
  }
}

TEST(Digest, OfASetEqualsTheDocumentedVectorInAnyOrder) {
  std::vector<TensorInfo> tensors;
  std::vector<Digest> digests;
  for (const auto& row : documented_table("## Test vector of a set")) {
    TensorInfo info{row.at(0), dtype_from_name(row.at(1)).value(), {}};
    std::istringstream shape(row.at(2));
    for (std::uint64_t extent = 0; shape >> extent;) info.shape.push_back(extent);
    tensors.push_back(info);
    digests.push_back(Digest::from_hex(row.at(3)).value());
  }
  ASSERT_EQ(tensors.size(), 3U);
  EXPECT_EQ(digest_of_set(tensors, digests).hex(), "79f0532f16789789ee540b4191f8f878");
  std::swap(tensors[0], tensors[2]);
  EXPECT_NE(digest_of_set(tensors, digests).hex(), "79f0532f16789789ee540b4191f8f878");
  std::swap(digests[0], digests[2]);
  EXPECT_EQ(digest_of_set(tensors, digests).hex(), "79f0532f16789789ee540b4191f8f878");
  tensors[0].shape.push_back(1);
  EXPECT_NE(digest_of_set(tensors, digests).hex(), "79f0532f16789789ee540b4191f8f878");
}

TEST(Digest, ReadsBackItsHexadecimalForm) {
  const Digest digest{0x0123456789abcdef, 0xfedcba9876543210};
  EXPECT_EQ(digest.hex(), "0123456789abcdeffedcba9876543210");
  EXPECT_EQ(Digest::from_hex(digest.hex()), digest);
  for (const char* bad : {"", "0", "0123456789abcdeffedcba987654321", "0123456789abcdeffedcba98765432100",
                          "0123456789ABCDEFfedcba9876543210", "0123456789abcdeffedcba987654321 "}) {
    EXPECT_EQ(Digest::from_hex(bad), std::nullopt) << bad;
  }
}

TEST(Digest, KeysOfALaneDiffer) {
  for (std::uint64_t lane = 0; lane < 2; ++lane) {
    std::vector<std::uint32_t> keys;
    for (std::uint64_t j = 0; j < 256; ++j) keys.push_back(digest_keys::word_key(lane, j));
    std::ranges::sort(keys);
    EXPECT_EQ(std::ranges::adjacent_find(keys), keys.end())
        << "exchanged words would go unseen, as digest.md says they do not";
  }
}

TEST(Digest, EveryKernelFollowsTheDefinitionAtEveryOffsetAndLength) {
  const Bytes data = random_bytes(2200);
  for (const NamedDigestKernel& kernel : digest_kernels()) {
    if (!kernel.usable) continue;
    for (const std::uint64_t offset : {0, 1, 2, 3, 4, 60, 1000, 1020, 1023, 1024, 4093}) {
      // A copy of the exact size at every alignment: AddressSanitizer sees a read past either end.
      for (std::size_t size : {0, 1, 2, 3, 4, 5, 31, 32, 33, 63, 64, 65, 127, 1019, 1024, 1027, 2047, 2200}) {
        const auto part = std::make_unique<std::byte[]>(size);
        std::copy_n(data.data(), size, part.get());
        const Digest expected = naive_digest({part.get(), size}, offset);
        ASSERT_EQ(digest_rows_with(kernel.run, part.get(), size, size, 1, offset, size), expected)
            << kernel.name << ", " << size << " bytes at " << offset;
      }
    }
  }
}

RC_GTEST_PROP(Digest, RowsAreTheSumOfTheirBytesForEveryKernel, ()) {
  const auto row_bytes = *rc::gen::inRange<std::uint64_t>(0, 3000), rows = *rc::gen::inRange<std::uint64_t>(0, 9);
  const auto pitch = row_bytes + *rc::gen::element<std::uint64_t>(0, 1, 2, 4, 64, 777);
  const auto parameter_pitch = row_bytes + *rc::gen::element<std::uint64_t>(0, 1, 2, 4, 96, 1023, 4096);
  const auto offset = *rc::gen::inRange<std::uint64_t>(0, 5000), skipped = *rc::gen::inRange<std::uint64_t>(0, 4);
  const Bytes data = random_bytes((rows + skipped) * pitch, row_bytes + 1);
  Digest expected;
  for (std::uint64_t row = skipped; row < skipped + rows; ++row) {
    expected += naive_digest(std::span(data).subspan(row * pitch, row_bytes), offset + row * parameter_pitch);
  }
  const auto* const begin = data.data() + skipped * pitch;
  const auto first = offset + skipped * parameter_pitch;
  for (const NamedDigestKernel& kernel : digest_kernels()) {
    if (!kernel.usable) continue;
    RC_ASSERT(digest_rows_with(kernel.run, begin, pitch, row_bytes, rows, first, parameter_pitch) == expected);
  }
  RC_ASSERT(digest_rows(begin, pitch, row_bytes, rows, first, parameter_pitch) == expected);
}

RC_GTEST_PROP(Digest, OfPartsAddsUpToTheWhole, ()) {
  const auto size = *rc::gen::inRange<std::size_t>(1, 20000);
  const Bytes data = random_bytes(size);
  auto cuts = *rc::gen::container<std::vector<std::size_t>>(rc::gen::inRange<std::size_t>(0, size));
  cuts.push_back(size);
  std::ranges::sort(cuts);
  Digest sum;
  std::size_t begin = 0;
  for (const std::size_t end : cuts) {
    sum += digest_bytes(std::span(data).subspan(begin, end - begin), begin);
    begin = end;
  }
  RC_ASSERT(sum == digest_bytes(data, 0));
}

TEST(Digest, SeesEveryFlippedBit) {
  Bytes data = random_bytes(1300);
  const Digest before = digest_bytes(data, 2);
  for (std::size_t bit = 0; bit < 8 * data.size(); ++bit) {
    const auto mask = static_cast<std::byte>(1U << (bit % 8));
    data[bit / 8] ^= mask;
    ASSERT_NE(digest_bytes(data, 2), before) << "bit " << bit;
    data[bit / 8] ^= mask;
  }
  EXPECT_EQ(digest_bytes(data, 2), before);
}

TEST(Digest, SeesWhereBytesAre) {
  const Bytes data = random_bytes(8192);
  const Digest whole = digest_bytes(data, 0);
  for (const std::size_t distance : {1, 2, 4, 64, 1024, 4096}) {
    Bytes moved = data;
    std::swap_ranges(moved.begin(), moved.begin() + static_cast<std::ptrdiff_t>(distance),
                     moved.begin() + static_cast<std::ptrdiff_t>(distance));
    EXPECT_NE(digest_bytes(moved, 0), whole) << distance;
    EXPECT_NE(digest_bytes(data, distance), whole) << distance;
  }
}

}  // namespace
}  // namespace weightcast
