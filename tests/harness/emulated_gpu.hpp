#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

#include "weightcast/device/gpu.hpp"

/// What the emulated GPUs' functions share: those of harness/emulated_gpu.cpp and of harness/emulated_delta.cpp.
namespace weightcast::gpu::emulated {

/// The end of the test.
[[noreturn]] void stop(const char* what);
/// Device memory as the host can touch it. Stops where any of the range is not there.
std::byte* at(const std::byte* address, std::uint64_t size_bytes);
/// Done when somebody waits for the stream.
void queue(const Stream& stream, std::function<void()> work);

/// Marks the units that differ, the first of which has that number. The bytes are the host's, the marks the GPU's.
void mark_units(std::span<const std::byte> before, std::span<const std::byte> after, std::uint64_t first,
                std::uint32_t* marks);

}  // namespace weightcast::gpu::emulated
