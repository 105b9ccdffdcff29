#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>

#include "harness/replica_set.hpp"
#include "weightcast/device/gpu.hpp"

namespace weightcast::testing_harness {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool sanitized = true;  // malloc is theirs, and they keep memory that was freed
#else
inline constexpr bool sanitized = false;
#endif

/// What a process has, at one moment.
struct Holdings {
  std::uint64_t gpu_allocations = gpu::allocations(), resident_bytes = 0, descriptors = 0, gpu_free_bytes = 0;

  explicit Holdings(MemoryKind memory) {
    if (memory == MemoryKind::cuda) gpu_free_bytes = gpu::properties(world_rank() % gpu::count()).free_bytes;
    std::ifstream status("/proc/self/status");
    for (std::string line; std::getline(status, line);) {
      if (line.starts_with("RssAnon:")) resident_bytes = std::stoull(line.substr(8)) * 1024;
    }
    for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) ++descriptors;
  }
};

/// MPI's lists of requests and fragments grow to what the busiest moment needs, once, by up to 130 KiB (seen with five
/// ranks on two cores). A request that is not given back in each of 1,000 updates is more than this. Pages that are
/// shared with other processes are not counted: which of them a process has touched says nothing.
inline constexpr std::uint64_t slack_bytes = 512 * 1024;

}  // namespace weightcast::testing_harness
