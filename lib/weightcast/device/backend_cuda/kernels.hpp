#pragma once

#include <cuda_runtime.h>

#include "weightcast/device/gpu.hpp"

/// The kernels behind copy_strided(), gather(), scatter(), quantize(), generate(), compare(), digest(),
/// copy_and_digest() and those for deltas. nvcc cannot read fmt's headers, so errors come back as codes.
namespace weightcast::gpu {

/// Of the GPU in use: what a grid is sized by. 1 when it cannot be asked: then the launch will say why.
inline unsigned multiprocessors() noexcept {
  int gpu = 0, count = 0;
  const bool known = cudaGetDevice(&gpu) == cudaSuccess &&
                     cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, gpu) == cudaSuccess;
  return known ? static_cast<unsigned>(count) : 1;
}

constexpr std::uint64_t quotient_up(std::uint64_t amount, std::uint64_t by) noexcept {
  return (amount + by - 1) / by;
}

cudaError_t launch_copy(const CopyTask* tasks, std::uint64_t count, const std::byte* source, std::byte* destination,
                        cudaStream_t stream);

cudaError_t launch_gather(const StridedElements& elements, std::byte* destination, const std::byte* matrix,
                          cudaStream_t stream);
cudaError_t launch_gather_narrow(const StridedElements& elements, Rounding rounding, std::byte* destination,
                                 const std::byte* matrix, cudaStream_t stream);
cudaError_t launch_scatter(const StridedElements& elements, std::byte* matrix, const std::byte* source,
                           cudaStream_t stream);

/// Of at least one element.
cudaError_t launch_quantize(ScaleKind kind, const FloatMatrix& source, const Fp8Matrix& destination,
                            cudaStream_t stream);

/// Of rows as joined() has them; at least one byte.
cudaError_t launch_generate(const WordGenerator& words, const ParameterRows& rows, std::byte* data,
                            cudaStream_t stream);
cudaError_t launch_compare(const WordGenerator& words, const ParameterRows& rows, const std::byte* data,
                           std::uint64_t first, std::uint64_t* difference, cudaStream_t stream);
cudaError_t launch_compare(const std::byte* reference, const ParameterRows& rows, const std::byte* data,
                           std::uint64_t first, std::uint64_t* difference, cudaStream_t stream);

cudaError_t launch_digest(const DigestTask* tasks, std::uint64_t count, const std::byte* base, std::uint64_t* results,
                          Share share, cudaStream_t stream);
cudaError_t launch_copy_and_digest(const DigestTask* tasks, std::uint64_t count, const CopySource& source,
                                   std::byte* base, std::uint64_t* results, Share share, cudaStream_t stream);

/// Of at least one unit; of streams of any size.
cudaError_t launch_mark(const std::byte* before, const std::byte* after, std::uint64_t size_bytes, std::uint32_t* marks,
                        cudaStream_t stream);
std::uint64_t scratch_bytes_to_encode(std::uint64_t block_count) noexcept;
cudaError_t launch_encode(const DeltaRuns& runs, const std::uint32_t* marks, const std::byte* source,
                          std::uint64_t* starts, DeltaEntry* entries, std::uint64_t capacity, std::byte* scratch,
                          cudaStream_t stream);
cudaError_t launch_check_delta(const DeltaRuns& runs, const std::uint64_t* starts, const DeltaEntry* entries,
                               std::uint64_t capacity, std::uint32_t* bad, cudaStream_t stream);
cudaError_t launch_check_starts(const DeltaRuns& runs, const std::uint64_t* starts, std::uint64_t capacity,
                                std::uint32_t* bad, cudaStream_t stream);
/// Of at least one block.
cudaError_t launch_apply_piece(const DeltaPiece& piece, std::byte* slot, std::uint64_t* sums, std::uint32_t* bad,
                               cudaStream_t stream);
cudaError_t launch_patch_and_digest(const DeltaPiece& piece, const std::byte* base, std::byte* slot,
                                    std::uint64_t* sums, std::uint32_t* bad, cudaStream_t stream);
/// Which blocks a piece has: found[0] to found[1], an empty range when *bad is 1.
cudaError_t launch_find_blocks(const DeltaPiece& piece, const std::uint32_t* bad, cudaStream_t stream);
cudaError_t launch_apply_delta(const DeltaRuns& runs, const std::uint64_t* starts, DeltaEntry* entries, bool swap,
                               std::byte* slot, std::uint64_t* sums, const std::uint32_t* bad, cudaStream_t stream);

}  // namespace weightcast::gpu
