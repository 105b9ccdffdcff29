#include "weightcast/device/backend_cuda/calls.hpp"
#include "weightcast/device/backend_cuda/kernels.hpp"
#include "weightcast/device/gpu.hpp"

namespace weightcast::gpu {

void mark(const std::byte* before, const std::byte* after, std::uint64_t size_bytes, std::uint32_t* marks,
          const Stream& stream) {
  if (size_bytes == 0) return;
  use(stream.gpu());
  check(launch_mark(before, after, size_bytes, marks, cuda(stream)), "mark kernel");
}

std::uint64_t encode_scratch_bytes(std::uint64_t block_count) {
  return scratch_bytes_to_encode(block_count);
}

void encode(const DeltaRuns& runs, const std::uint32_t* marks, const std::byte* source, std::uint64_t* starts,
            DeltaEntry* entries, std::uint64_t capacity, std::byte* scratch, const Stream& stream) {
  use(stream.gpu());
  check(launch_encode(runs, marks, source, starts, entries, capacity, scratch, cuda(stream)), "encode kernels");
}

void check_delta(const DeltaRuns& runs, const std::uint64_t* starts, const DeltaEntry* entries, std::uint64_t capacity,
                 std::uint32_t* bad, const Stream& stream) {
  use(stream.gpu());
  check(launch_check_delta(runs, starts, entries, capacity, bad, cuda(stream)), "check kernel");
}

void apply_delta(const DeltaRuns& runs, const std::uint64_t* starts, DeltaEntry* entries, bool swap, std::byte* slot,
                 std::uint64_t* sums, const std::uint32_t* bad, const Stream& stream) {
  if (runs.block_count == 0) return;
  use(stream.gpu());
  check(launch_apply_delta(runs, starts, entries, swap, slot, sums, bad, cuda(stream)), "apply kernel");
}

void check_starts(const DeltaRuns& runs, const std::uint64_t* starts, std::uint64_t capacity, std::uint32_t* bad,
                  const Stream& stream) {
  use(stream.gpu());
  check(launch_check_starts(runs, starts, capacity, bad, cuda(stream)), "check kernel");
}

void apply_piece(const DeltaPiece& piece, std::byte* slot, std::uint64_t* sums, std::uint32_t* bad,
                 const Stream& stream) {
  if (piece.runs.block_count == 0) return;
  use(stream.gpu());
  check(launch_apply_piece(piece, slot, sums, bad, cuda(stream)), "apply kernel");
}

void patch_and_digest(const DeltaPiece& piece, const std::byte* base, std::byte* slot, std::uint64_t* sums,
                      std::uint32_t* bad, const Stream& stream) {
  if (piece.runs.block_count == 0) return;
  use(stream.gpu());
  check(launch_patch_and_digest(piece, base, slot, sums, bad, cuda(stream)), "patch kernel");
}

void copy(std::byte* destination, const std::byte* source, std::uint64_t size_bytes, const Stream& stream) {
  if (size_bytes == 0) return;
  use(stream.gpu());
  check(cudaMemcpyAsync(destination, source, size_bytes, cudaMemcpyDeviceToDevice, cuda(stream)), "cudaMemcpyAsync");
}

}  // namespace weightcast::gpu
