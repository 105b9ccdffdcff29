#include <algorithm>
#include <cstdint>

#include "weightcast/device/backend_cuda/kernels.hpp"

namespace weightcast::gpu {
namespace {

/// Calls `visit(number, offset in the matrix)` for each element, neighbours by neighbouring threads.
template <typename Visit>
__device__ inline void visit_elements(const StridedElements& elements, const Visit& visit) {
  const std::uint64_t threads = static_cast<std::uint64_t>(gridDim.x) * blockDim.x;
  for (std::uint64_t i = static_cast<std::uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < elements.count;
       i += threads) {
    const std::uint64_t row = (elements.first + i) / elements.columns, column = (elements.first + i) % elements.columns;
    visit(i, static_cast<std::int64_t>(row) * elements.row_stride +
                 static_cast<std::int64_t>(column) * elements.column_stride);
  }
}

template <typename Element>
__global__ void __launch_bounds__(512)
    gather_kernel(StridedElements elements, Element* destination, const std::byte* matrix) {
  visit_elements(elements, [&](std::uint64_t i, std::int64_t offset) {
    destination[i] = *reinterpret_cast<const Element*>(matrix + offset);
  });
}

template <typename Element>
__global__ void __launch_bounds__(512) gather_narrow_kernel(StridedElements elements, Rounding rounding,
                                                            std::uint16_t* destination, const std::byte* matrix) {
  visit_elements(elements, [&](std::uint64_t i, std::int64_t offset) {
    const std::uint32_t bits = *reinterpret_cast<const Element*>(matrix + offset);
    destination[i] = narrow(rounding.to, widen(rounding.from, bits));
  });
}

template <typename Element>
__global__ void __launch_bounds__(512)
    scatter_kernel(StridedElements elements, std::byte* matrix, const Element* source) {
  visit_elements(elements, [&](std::uint64_t i, std::int64_t offset) {
    *reinterpret_cast<Element*>(matrix + offset) = source[i];
  });
}

constexpr unsigned elements_block = 512;

unsigned element_blocks(const StridedElements& elements) {
  return static_cast<unsigned>(
      std::clamp<std::uint64_t>(elements.count / (4 * elements_block), 1, std::uint64_t{8} * multiprocessors()));
}

/// Calls `launch` with an element of that width.
template <typename Launch>
cudaError_t with_element(std::uint64_t width, const Launch& launch) {
  switch (width) {
    case 1: launch(std::uint8_t{}); break;
    case 2: launch(std::uint16_t{}); break;
    case 4: launch(std::uint32_t{}); break;
    default: launch(std::uint64_t{}); break;
  }
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_gather(const StridedElements& elements, std::byte* destination, const std::byte* matrix,
                          cudaStream_t stream) {
  return with_element(elements.element_bytes, [&](auto element) {
    gather_kernel<<<element_blocks(elements), elements_block, 0, stream>>>(
        elements, reinterpret_cast<decltype(element)*>(destination), matrix);
  });
}

cudaError_t launch_gather_narrow(const StridedElements& elements, Rounding rounding, std::byte* destination,
                                 const std::byte* matrix, cudaStream_t stream) {
  auto* const out = reinterpret_cast<std::uint16_t*>(destination);
  if (rounding.from == WideFloat::f32) {
    gather_narrow_kernel<std::uint32_t>
        <<<element_blocks(elements), elements_block, 0, stream>>>(elements, rounding, out, matrix);
  } else {
    gather_narrow_kernel<std::uint16_t>
        <<<element_blocks(elements), elements_block, 0, stream>>>(elements, rounding, out, matrix);
  }
  return cudaGetLastError();
}

cudaError_t launch_scatter(const StridedElements& elements, std::byte* matrix, const std::byte* source,
                           cudaStream_t stream) {
  return with_element(elements.element_bytes, [&](auto element) {
    scatter_kernel<<<element_blocks(elements), elements_block, 0, stream>>>(
        elements, matrix, reinterpret_cast<const decltype(element)*>(source));
  });
}

}  // namespace weightcast::gpu
