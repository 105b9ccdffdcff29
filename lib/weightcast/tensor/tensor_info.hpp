#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "weightcast/tensor/dtype.hpp"

namespace weightcast {

/// What is known of a tensor without its data: row-major, dense.
struct TensorInfo {
  std::string name;
  DType dtype = DType::BF16;
  std::vector<std::uint64_t> shape;  ///< in elements, outermost first; empty for a scalar

  bool operator==(const TensorInfo&) const = default;

  /// Number of elements; 1 for a scalar. Nothing on overflow.
  std::optional<std::uint64_t> elements() const noexcept;
  /// Size in bytes. Nothing on overflow, or when sub-byte elements do not fill whole bytes.
  std::optional<std::uint64_t> size_bytes() const noexcept;
  /// "BF16 [2048, 512]"
  std::string describe() const;
};

}  // namespace weightcast
