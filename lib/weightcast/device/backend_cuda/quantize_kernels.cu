#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <algorithm>
#include <cstdint>

#include "weightcast/device/backend_cuda/kernels.hpp"

namespace weightcast::gpu {
namespace {

constexpr unsigned warp = 32, vector_bytes = 16;
/// What a thread keeps between the search for the greatest magnitude and the rounding.
constexpr unsigned kept_vectors = 8;

template <WideFloat from>
constexpr unsigned lanes = vector_bytes / static_cast<unsigned>(width_bytes(from));

/// Some elements of a row, in their own bits, as they lie in memory.
struct Vector {
  std::uint32_t words[4];
};

template <WideFloat from>
__device__ inline std::uint32_t element(const Vector& vector, unsigned lane) {
  if constexpr (from == WideFloat::f32) return vector.words[lane];
  return vector.words[lane / 2] >> (16 * (lane % 2)) & 0xffff;
}

/// `count` elements from `data` on, and zeros.
template <WideFloat from>
__device__ inline Vector load(const std::byte* data, std::uint64_t count, bool aligned) {
  if (aligned && count >= lanes<from>) {
    const uint4 v = __ldcs(reinterpret_cast<const uint4*>(data));
    return {{v.x, v.y, v.z, v.w}};
  }
  Vector vector{};
#pragma unroll
  for (unsigned lane = 0; lane < lanes<from>; ++lane) {
    if (lane >= count) break;
    if constexpr (from == WideFloat::f32) {
      vector.words[lane] = reinterpret_cast<const std::uint32_t*>(data)[lane];
    } else {
      vector.words[lane / 2] |= static_cast<std::uint32_t>(reinterpret_cast<const std::uint16_t*>(data)[lane])
                                << (16 * (lane % 2));
    }
  }
  return vector;
}

/// The greatest magnitude of a vector and of `most`, in the elements' own bits; in their order NaN is above all.
template <WideFloat from>
__device__ inline std::uint32_t greatest(const Vector& vector, std::uint32_t most) {
  constexpr std::uint32_t magnitude = from == WideFloat::f32 ? 0x7fffffff : 0x7fff;
#pragma unroll
  for (unsigned lane = 0; lane < lanes<from>; ++lane) most = max(most, element<from>(vector, lane) & magnitude);
  return most;
}

/// The same over the threads of a block; in all of them.
__device__ inline std::uint32_t greatest_of_block(std::uint32_t most) {
  __shared__ std::uint32_t of_warp[32];
  most = __reduce_max_sync(0xffffffff, most);
  if (threadIdx.x % warp == 0) of_warp[threadIdx.x / warp] = most;
  __syncthreads();
  return __reduce_max_sync(0xffffffff, threadIdx.x % warp < blockDim.x / warp ? of_warp[threadIdx.x % warp] : 0);
}

/// Division by one number. With its reciprocal correctly rounded, the second correction of a quotient rounds correctly
/// (Markstein, IBM J. Res. Dev. 34, 1990), where nothing under- or overflows: a quotient of a scale's elements is at
/// most 448, and of one below 2^-11 it only matters that it is.
struct Divisor {
  float value, reciprocal;
  __device__ float divide(float x) const {
    float quotient = __fmul_rn(x, reciprocal);
    quotient = __fmaf_rn(__fmaf_rn(-quotient, value, x), reciprocal, quotient);
    quotient = __fmaf_rn(__fmaf_rn(-quotient, value, x), reciprocal, quotient);
    return copysignf(quotient, x);  // which sums of zeros have lost
  }
};

__device__ inline Divisor divisor(float by) {
  return {by, __frcp_rn(by)};
}

/// The bits of two finite floats, the first below.
__device__ inline std::uint32_t e4m3_pair(float first, float second) {
#if __CUDA_ARCH__ >= 890
  return __nv_cvt_float2_to_fp8x2(make_float2(first, second), __NV_SATFINITE, __NV_E4M3);
#else
  return e4m3_of_finite(__float_as_uint(first)) | static_cast<std::uint32_t>(e4m3_of_finite(__float_as_uint(second)))
                                                      << 8;
#endif
}

/// What a vector becomes: lanes<from> bytes.
template <WideFloat from>
__device__ inline std::uint64_t quantized(const Vector& vector, const Divisor& scale) {
  std::uint64_t bytes = 0;
  if (isfinite(scale.value)) {
#pragma unroll
    for (unsigned lane = 0; lane < lanes<from>; lane += 2) {
      const auto value = [&](unsigned of) {
        const std::uint32_t bits = element<from>(vector, of);
        return scale.divide(from == WideFloat::f16 ? __half2float(__ushort_as_half(static_cast<std::uint16_t>(bits)))
                                                   : __uint_as_float(widen(from, bits)));
      };
      bytes |= static_cast<std::uint64_t>(e4m3_pair(value(lane), value(lane + 1))) << (8 * lane);
    }
  } else {
    for (unsigned lane = 0; lane < lanes<from>; ++lane)
      bytes |= static_cast<std::uint64_t>(e4m3_of_unscalable(widen(from, element<from>(vector, lane)), scale.value))
               << (8 * lane);
  }
  return bytes;
}

template <WideFloat from>
__device__ inline void store(std::byte* to, std::uint64_t bytes, std::uint64_t count, bool aligned) {
  if (aligned && count >= lanes<from>) {
    if constexpr (from == WideFloat::f32) {
      *reinterpret_cast<std::uint32_t*>(to) = static_cast<std::uint32_t>(bytes);
    } else {
      *reinterpret_cast<std::uint64_t*>(to) = bytes;
    }
    return;
  }
  for (unsigned lane = 0; lane < lanes<from> && lane < count; ++lane)
    to[lane] = static_cast<std::byte>(bytes >> (8 * lane));
}

/// Whether vectors of every row can be read, and written, as such.
template <WideFloat from>
__device__ inline bool reads_aligned(const FloatMatrix& source) {
  return (reinterpret_cast<std::uintptr_t>(source.data) | source.pitch * width_bytes(from)) % vector_bytes == 0;
}
template <WideFloat from>
__device__ inline bool writes_aligned(const Fp8Matrix& to) {
  return (reinterpret_cast<std::uintptr_t>(to.data) | to.pitch) % lanes<from> == 0;
}

template <WideFloat from>
constexpr unsigned block_threads = scale_block* scale_block / lanes<from> / kept_vectors;

/// One block of threads quantises one block of the matrix, and reads it once.
template <WideFloat from>
__global__ void __launch_bounds__(block_threads<from>)
    quantize_blocks(FloatMatrix source, Fp8Matrix to, std::uint64_t block_columns) {
  constexpr unsigned row_threads = scale_block / lanes<from>, rows_at_once = block_threads<from> / row_threads;
  const std::uint64_t block_row = blockIdx.x / block_columns, block_column = blockIdx.x % block_columns;
  const std::uint64_t column = block_column * scale_block + threadIdx.x % row_threads * lanes<from>;
  const std::uint64_t first_row = block_row * scale_block + threadIdx.x / row_threads;
  const std::uint64_t count = column < source.columns ? source.columns - column : 0;
  const bool reads = reads_aligned<from>(source), writes = writes_aligned<from>(to);
  Vector kept[kept_vectors];
#pragma unroll
  for (unsigned i = 0; i < kept_vectors; ++i) {
    const std::uint64_t row = first_row + i * rows_at_once;
    kept[i] = load<from>(source.data + (row * source.pitch + column) * width_bytes(from), row < source.rows ? count : 0,
                         reads);
  }
  std::uint32_t most = 0;
#pragma unroll
  for (unsigned i = 0; i < kept_vectors; ++i) most = greatest<from>(kept[i], most);
  const Divisor scale = divisor(scale_of(widen(from, greatest_of_block(most))));
  if (threadIdx.x == 0) to.scales[block_row * to.scale_pitch + block_column] = scale.value;
#pragma unroll
  for (unsigned i = 0; i < kept_vectors; ++i) {
    const std::uint64_t row = first_row + i * rows_at_once;
    if (row < source.rows)
      store<from>(to.data + row * to.pitch + column, quantized<from>(kept[i], scale), count, writes);
  }
}

/// One block of threads quantises one row, and reads it once unless it is longer than what its threads keep.
template <WideFloat from>
__global__ void __launch_bounds__(512) quantize_rows(FloatMatrix source, Fp8Matrix to) {
  const std::uint64_t row = blockIdx.x;
  const std::byte* const data = source.data + row * source.pitch * width_bytes(from);
  std::byte* const out = to.data + row * to.pitch;
  const std::uint64_t vectors = (source.columns + lanes<from> - 1) / lanes<from>;
  const bool reads = reads_aligned<from>(source), writes = writes_aligned<from>(to);
  const auto load_at = [&](std::uint64_t i) {
    return i < vectors ? load<from>(data + i * lanes<from> * width_bytes(from), source.columns - i * lanes<from>, reads)
                       : Vector{};
  };
  Vector kept[kept_vectors];
#pragma unroll
  for (unsigned k = 0; k < kept_vectors; ++k) kept[k] = load_at(threadIdx.x + std::uint64_t{k} * blockDim.x);
  std::uint32_t most = 0;
#pragma unroll
  for (unsigned k = 0; k < kept_vectors; ++k) most = greatest<from>(kept[k], most);
  const std::uint64_t rest = threadIdx.x + std::uint64_t{kept_vectors} * blockDim.x;
  for (std::uint64_t i = rest; i < vectors; i += blockDim.x) most = greatest<from>(load_at(i), most);
  const Divisor scale = divisor(scale_of(widen(from, greatest_of_block(most))));
  if (threadIdx.x == 0) to.scales[row * to.scale_pitch] = scale.value;
  const auto store_at = [&](std::uint64_t i, const Vector& vector) {
    store<from>(out + i * lanes<from>, quantized<from>(vector, scale), source.columns - i * lanes<from>, writes);
  };
#pragma unroll
  for (unsigned k = 0; k < kept_vectors; ++k) {
    const std::uint64_t i = threadIdx.x + std::uint64_t{k} * blockDim.x;
    if (i < vectors) store_at(i, kept[k]);
  }
  for (std::uint64_t i = rest; i < vectors; i += blockDim.x) store_at(i, load_at(i));
}

template <WideFloat from>
cudaError_t launch(ScaleKind kind, const FloatMatrix& source, const Fp8Matrix& to, cudaStream_t stream) {
  if (kind == ScaleKind::block) {
    const std::uint64_t columns = scale_columns(kind, source.columns);
    const auto blocks = static_cast<unsigned>(columns * scale_rows(kind, source.rows));
    quantize_blocks<from><<<blocks, block_threads<from>, 0, stream>>>(source, to, columns);
  } else {
    const std::uint64_t threads = quotient_up(quotient_up(source.columns, lanes<from> * kept_vectors), warp) * warp;
    quantize_rows<from><<<static_cast<unsigned>(source.rows),
                          static_cast<unsigned>(std::min<std::uint64_t>(threads, 512)), 0, stream>>>(source, to);
  }
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_quantize(ScaleKind kind, const FloatMatrix& source, const Fp8Matrix& to, cudaStream_t stream) {
  switch (source.type) {
    case WideFloat::f32: return launch<WideFloat::f32>(kind, source, to, stream);
    case WideFloat::bf16: return launch<WideFloat::bf16>(kind, source, to, stream);
    default: return launch<WideFloat::f16>(kind, source, to, stream);
  }
}

}  // namespace weightcast::gpu
