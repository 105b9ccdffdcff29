#pragma once

#include <cuda_runtime.h>

#include "weightcast/core/error.hpp"
#include "weightcast/device/gpu.hpp"

/// What all calls of this backend begin and end with.
namespace weightcast::gpu {

inline void check(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // a sticky error would be blamed on the next call
  fail(ExitCode::unavailable, "{}: {} ({})", call, cudaGetErrorString(status), cudaGetErrorName(status));
}

inline void use(int gpu) {
  check(cudaSetDevice(gpu), "cudaSetDevice");
}

inline cudaStream_t cuda(const Stream& stream) noexcept {
  return static_cast<cudaStream_t>(stream.handle());
}

}  // namespace weightcast::gpu
