// What strides say about memory, held against marking every element: random small layouts, also those that interleave.
#include "weightcast/tensor/matrix_layout.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>

namespace weightcast {
namespace {

/// Where every byte of a matrix is, once for each element that has it.
std::vector<std::uint64_t> bytes_of(const PlacedMatrix& matrix) {
  std::vector<std::uint64_t> bytes;
  const auto& layout = matrix.layout;
  for (std::uint64_t r = 0; r < layout.rows; ++r) {
    for (std::uint64_t c = 0; c < layout.columns; ++c) {
      const auto first = static_cast<std::int64_t>(matrix.address) + static_cast<std::int64_t>(r) * layout.row_stride +
                         static_cast<std::int64_t>(c) * layout.column_stride;
      for (std::uint64_t b = 0; b < layout.element_bytes; ++b) bytes.push_back(static_cast<std::uint64_t>(first) + b);
    }
  }
  std::sort(bytes.begin(), bytes.end());
  return bytes;
}

class MatrixLayouts : public testing::Test {
 protected:
  std::uint64_t below(std::uint64_t limit) { return random_() % limit; }
  std::int64_t stride(std::uint64_t limit, std::int64_t width) {
    return (static_cast<std::int64_t>(below(2 * limit + 1)) - static_cast<std::int64_t>(limit)) * width;
  }
  PlacedMatrix matrix(std::uint64_t width, std::uint64_t reach) {
    const auto signed_width = static_cast<std::int64_t>(width);
    const TensorInfo info{"t", width == 2 ? DType::BF16 : DType::F32, {below(6), below(6)}};
    const std::int64_t strides[] = {stride(reach, signed_width), stride(reach, signed_width)};
    return {10'000 + width * below(4 * reach), layout_of(info, strides).value()};
  }

 private:
  std::mt19937_64 random_{1};
};

TEST_F(MatrixLayouts, ElementsAreApartWhenNoByteIsTwice) {
  int apart = 0, shared = 0;
  for (int i = 0; i < 20'000; ++i) {
    const auto one = matrix(i % 2 == 0 ? 2 : 4, 1 + below(12));
    const auto bytes = bytes_of(one);
    const bool expected = std::adjacent_find(bytes.begin(), bytes.end()) == bytes.end();
    ASSERT_TRUE(one.layout.aligned());
    ASSERT_EQ(one.layout.elements_apart(), expected) << one.layout.rows << " " << one.layout.columns << " "
                                                     << one.layout.row_stride << " " << one.layout.column_stride;
    ++(expected ? apart : shared);
  }
  EXPECT_GT(apart, 1000);
  EXPECT_GT(shared, 1000);
}

TEST_F(MatrixLayouts, OverlapsAreThoseOfTheirBytes) {
  int found = 0, none = 0;
  for (int i = 0; i < 10'000; ++i) {
    std::vector<PlacedMatrix> placed;
    const auto reach = 1 + below(20);
    for (auto count = 2 + below(4); placed.size() < count;) {
      const auto one = matrix(below(5) == 0 ? 4 : 2, reach);
      if (one.layout.elements_apart()) placed.push_back(one);
    }
    std::map<std::uint64_t, std::set<std::size_t>> holders;
    for (std::size_t m = 0; m < placed.size(); ++m) {
      for (const auto byte : bytes_of(placed[m])) holders[byte].insert(m);
    }
    std::set<std::pair<std::size_t, std::size_t>> expected;
    for (const auto& [byte, matrices] : holders) {
      for (const auto a : matrices) {
        for (const auto b : matrices) {
          if (a < b) expected.insert({a, b});
        }
      }
    }
    const auto pairs = overlapping(placed);
    ASSERT_EQ(std::set(pairs.begin(), pairs.end()), expected) << i;
    ++(expected.empty() ? none : found);
  }
  EXPECT_GT(found, 1000);
  EXPECT_GT(none, 1000);
}

TEST_F(MatrixLayouts, LargeOnesThatInterleaveTakeNoMemoryForTheirElements) {
  // Every other column of one allocation of 2^40 elements, forwards and backwards; then one column too many.
  const TensorInfo info{"t", DType::BF16, {1024, std::uint64_t{1} << 29}};
  const std::int64_t pitch = std::int64_t{1} << 31, strides[] = {pitch, 4}, back[] = {-pitch, 4},
                     shifted[] = {pitch, 6};
  const auto even = layout_of(info, strides).value(), odd = layout_of(info, back).value();
  const std::uint64_t base = std::uint64_t{1} << 40, last = base + 1023 * static_cast<std::uint64_t>(pitch);
  EXPECT_TRUE(overlapping(std::vector<PlacedMatrix>{{base, even}, {last + 2, odd}}).empty());
  EXPECT_EQ(overlapping(std::vector<PlacedMatrix>{{base, even}, {last, odd}}).size(), 1U);
  const auto part = layout_of({"t", DType::BF16, {1024, 5}}, shifted).value();
  EXPECT_EQ(overlapping(std::vector<PlacedMatrix>{{base, even}, {base + 2, part}}).size(), 1U);
}

TEST_F(MatrixLayouts, WhatOneStrideReachesIsOneRow) {
  const auto layout = [](std::vector<std::uint64_t> shape, std::vector<std::int64_t> strides) {
    return layout_of({"t", DType::F32, std::move(shape)}, strides).value();
  };
  EXPECT_TRUE(layout({3, 5}, {}).dense());
  EXPECT_TRUE(layout({3, 5}, {20, 4}).dense());
  EXPECT_TRUE(layout({1, 5}, {999, 4}).dense()) << "nobody takes the stride of one row";
  EXPECT_TRUE(layout({}, {}).dense());
  EXPECT_TRUE(layout({0, 5}, {-3, 7}).dense());
  EXPECT_FALSE(layout({3, 5}, {24, 4}).dense());
  EXPECT_FALSE(layout({5}, {-4}).dense());
  EXPECT_EQ(layout({3, 5}, {-20, -4}), layout({15}, {-4}));
  EXPECT_EQ(layout({3, 5}, {0, 0}), layout({15}, {0}));
}

TEST_F(MatrixLayouts, DimensionsThatContinueEachOtherAreOne) {
  const auto layout = [](std::vector<std::uint64_t> shape, std::vector<std::int64_t> strides) {
    return layout_of({"t", DType::F32, std::move(shape)}, strides);
  };
  EXPECT_TRUE(layout({2, 3, 5}, {60, 20, 4}).value().dense());
  EXPECT_EQ(layout({2, 3, 5}, {72, 24, 4}), layout({6, 5}, {24, 4})) << "gaps behind each row";
  EXPECT_EQ(layout({2, 3, 5}, {100, 20, 4}), layout({2, 15}, {100, 4})) << "gaps behind each matrix";
  EXPECT_EQ(layout({1, 3, 5}, {7, 24, 4}), layout({3, 5}, {24, 4}));
  EXPECT_EQ(layout({2, 1, 5}, {24, 7, 4}), layout({2, 5}, {24, 4}));
  EXPECT_EQ(layout({2, 3, 1}, {100, 8, 7}), layout({2, 3}, {100, 8}));
  EXPECT_EQ(layout({2, 2, 2, 2}, {-64, -32, -16, 4}), layout({8, 2}, {-16, 4}));
  EXPECT_EQ(layout({2, 3, 5}, {0, 0, 0}), layout({30}, {0}));
  EXPECT_FALSE(layout({2, 3, 5}, {100, 24, 4})) << "gaps behind rows, and others behind matrices";
  EXPECT_FALSE(layout({2, 3, 5}, {60, 4, 12})) << "each matrix is another one transposed";
  EXPECT_TRUE(layout({1, 3, 5}, {60, 4, 12}));
}

TEST_F(MatrixLayouts, NothingForStridesThatDescribeNoTensor) {
  const TensorInfo info{"t", DType::BF16, {3, 5}};
  EXPECT_FALSE(layout_of(info, std::vector<std::int64_t>{2}));
  EXPECT_FALSE(layout_of(info, std::vector<std::int64_t>{INT64_MAX, 2}));
  EXPECT_FALSE(layout_of(info, std::vector<std::int64_t>{INT64_MIN, 2}));
  EXPECT_TRUE(layout_of(info, std::vector<std::int64_t>{INT64_MAX / 2 - 8, 2}));
  EXPECT_FALSE(layout_of({"t", DType::F4, {3, 4}}, std::vector<std::int64_t>{2, 1}));
}

}  // namespace
}  // namespace weightcast
