#include <algorithm>
#include <cstdint>

#include "weightcast/device/backend_cuda/kernels.hpp"

namespace weightcast::gpu {
namespace {

/// Two words of 64 bits: what a thread takes at a time where everything lies at multiples of 16 bytes. Else a byte.
using Words = ulonglong2;

/// What rows should be: made of their index.
struct Made {
  WordGenerator words;
  std::uint64_t offset, pitch;  // in the parameter

  __device__ void get(std::uint64_t row, std::uint64_t column, Words& unit) const {
    const std::uint64_t first = (offset + row * pitch + column) / 8;
    unit = make_ulonglong2(words.word(first), words.word(first + 1));
  }
  __device__ void get(std::uint64_t row, std::uint64_t column, std::uint8_t& unit) const {
    unit = words.byte(offset + row * pitch + column);
  }
};

/// The same: in memory.
struct Given {
  const std::byte* data;
  std::uint64_t pitch;

  template <typename Unit>
  __device__ void get(std::uint64_t row, std::uint64_t column, Unit& unit) const {
    unit = *reinterpret_cast<const Unit*>(data + row * pitch + column);
  }
};

/// Calls `visit(row, column in bytes)` for each unit, neighbours by neighbouring threads.
template <typename Unit, typename Visit>
__device__ inline void visit_units(const ParameterRows& rows, const Visit& visit) {
  const std::uint64_t threads = static_cast<std::uint64_t>(gridDim.x) * blockDim.x,
                      in_row = rows.row_bytes / sizeof(Unit);
  for (std::uint64_t i = static_cast<std::uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < in_row * rows.rows;
       i += threads) {
    const std::uint64_t row = rows.rows == 1 ? 0 : i / in_row;
    visit(row, (i - row * in_row) * sizeof(Unit));
  }
}

/// How many bytes are equal before the first that is not; all of them when all are.
__device__ inline unsigned equal_bytes(const Words& a, const Words& b) {
  if (a.x != b.x) return static_cast<unsigned>(__ffsll(static_cast<long long>(a.x ^ b.x)) - 1) / 8;
  if (a.y != b.y) return 8 + static_cast<unsigned>(__ffsll(static_cast<long long>(a.y ^ b.y)) - 1) / 8;
  return 16;
}
__device__ inline unsigned equal_bytes(std::uint8_t a, std::uint8_t b) {
  return a == b ? 1 : 0;
}

template <typename Unit>
__global__ void __launch_bounds__(512) generate_kernel(Made made, ParameterRows rows, std::byte* data) {
  visit_units<Unit>(rows, [&](std::uint64_t row, std::uint64_t column) {
    Unit unit;
    made.get(row, column, unit);
    *reinterpret_cast<Unit*>(data + row * rows.pitch + column) = unit;
  });
}

template <typename Unit, typename Expected>
__global__ void __launch_bounds__(512) compare_kernel(Expected expected, ParameterRows rows, const std::byte* data,
                                                      std::uint64_t first, std::uint64_t* difference) {
  unsigned long long greatest = 0;
  visit_units<Unit>(rows, [&](std::uint64_t row, std::uint64_t column) {
    Unit theirs;
    expected.get(row, column, theirs);
    const Unit held = *reinterpret_cast<const Unit*>(data + row * rows.pitch + column);
    const unsigned equal = equal_bytes(held, theirs);
    if (equal == sizeof(Unit)) return;
    const unsigned long long complement = ~(first + row * rows.row_bytes + column + equal);
    greatest = complement > greatest ? complement : greatest;
  });
  if (greatest != 0) atomicMax(reinterpret_cast<unsigned long long*>(difference), greatest);
}

constexpr unsigned block = 512;

unsigned blocks(const ParameterRows& rows, std::uint64_t unit_bytes) {
  const auto units = rows.rows * (rows.row_bytes / unit_bytes);
  return static_cast<unsigned>(std::clamp<std::uint64_t>(units / (4 * block), 1, std::uint64_t{4} * multiprocessors()));
}

/// Whether every row begins and ends at a multiple of 16 bytes.
bool aligned(const ParameterRows& rows, const std::byte* data, std::uint64_t expected) {
  return ((reinterpret_cast<std::uintptr_t>(data) | rows.pitch | rows.row_bytes | rows.parameter_pitch | expected) %
          sizeof(Words)) == 0;
}

template <typename Expected>
cudaError_t launch_compare(const Expected& expected, bool by_words, const ParameterRows& rows, const std::byte* data,
                           std::uint64_t first, std::uint64_t* difference, cudaStream_t stream) {
  if (by_words) {
    compare_kernel<Words><<<blocks(rows, sizeof(Words)), block, 0, stream>>>(expected, rows, data, first, difference);
  } else {
    compare_kernel<std::uint8_t><<<blocks(rows, 1), block, 0, stream>>>(expected, rows, data, first, difference);
  }
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_generate(const WordGenerator& words, const ParameterRows& rows, std::byte* data,
                            cudaStream_t stream) {
  const Made made{words, rows.offset, rows.parameter_pitch};
  if (aligned(rows, data, rows.offset)) {
    generate_kernel<Words><<<blocks(rows, sizeof(Words)), block, 0, stream>>>(made, rows, data);
  } else {
    generate_kernel<std::uint8_t><<<blocks(rows, 1), block, 0, stream>>>(made, rows, data);
  }
  return cudaGetLastError();
}

cudaError_t launch_compare(const WordGenerator& words, const ParameterRows& rows, const std::byte* data,
                           std::uint64_t first, std::uint64_t* difference, cudaStream_t stream) {
  return launch_compare(Made{words, rows.offset, rows.parameter_pitch}, aligned(rows, data, rows.offset), rows, data,
                        first, difference, stream);
}

cudaError_t launch_compare(const std::byte* reference, const ParameterRows& rows, const std::byte* data,
                           std::uint64_t first, std::uint64_t* difference, cudaStream_t stream) {
  return launch_compare(Given{reference, rows.parameter_pitch},
                        aligned(rows, data, reinterpret_cast<std::uintptr_t>(reference)), rows, data, first, difference,
                        stream);
}

}  // namespace weightcast::gpu
