// The C++ side of safetensors_interop.py.
//   safetensors_tool write DIR SHARD_BYTES   writes tensors of all dtypes that the reference writer knows; byte j of
//   tensor i
//                                            is (31 j + 7 i + j / 256) mod 256
//   safetensors_tool read PATH               prints a line per tensor: name, dtype, shape, bytes in hex
#include <fmt/ranges.h>

#include <cstdio>
#include <string>
#include <string_view>
#include <vector>

#include "weightcast/checkpoint/checkpoint.hpp"
#include "weightcast/core/error.hpp"

using namespace weightcast;

namespace {

void write(const std::string& directory, std::uint64_t shard_bytes) {
  CheckpointContent content;
  for (int i = 0; i < dtype_count; ++i) {
    const auto dtype = static_cast<DType>(i);
    content.tensors.push_back(
        {fmt::format("layers.{}.{}", i, name(dtype)), dtype, {3, static_cast<std::uint64_t>(8 * i)}});
  }
  content.tensors.push_back({"scalar", DType::F32, {}});
  content.tensors.push_back({"ten \"quoted\" \\ \n Gewicht-ü", DType::BF16, {1, 2, 3, 4}});
  content.fill = [](std::size_t index, std::uint64_t offset, std::span<std::byte> destination) {
    for (std::size_t k = 0; k < destination.size(); ++k) {
      const auto j = offset + k;
      destination[k] = static_cast<std::byte>(31 * j + 7 * index + j / 256);
    }
  };
  write_checkpoint(directory, content, shard_bytes, "{}\n", 2);
}

void read(const std::string& path) {
  const auto checkpoint = Checkpoint::open(path);
  for (std::size_t i = 0; i < checkpoint.tensors().size(); ++i) {
    const auto& tensor = checkpoint.tensors()[i];
    std::vector<std::byte> bytes(*tensor.size_bytes());
    checkpoint.read(i, 0, bytes);
    std::string name_hex, data_hex;
    for (const char c : tensor.name) name_hex += fmt::format("{:02x}", static_cast<unsigned char>(c));
    for (const auto byte : bytes) data_hex += fmt::format("{:02x}", static_cast<unsigned>(byte));
    fmt::print("{}|{}|{}|{}\n", name_hex, name(tensor.dtype), fmt::join(tensor.shape, ","), data_hex);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  try {
    if (arguments.size() == 3 && arguments[0] == "write") {
      write(arguments[1], std::stoull(arguments[2]));
    } else if (arguments.size() == 2 && arguments[0] == "read") {
      read(arguments[1]);
    } else {
      std::fprintf(stderr, "usage: safetensors_tool write DIR SHARD_BYTES | read PATH\n");
      return 64;
    }
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return static_cast<int>(error.code());
  }
  return 0;
}
