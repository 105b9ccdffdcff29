#include "tensor_reader.hpp"

#include <filesystem>

namespace weightcast {
namespace {

std::variant<Checkpoint, Snapshot> open(const std::string& path) {
  std::error_code unreadable;  // left to Checkpoint::open() to report
  if (std::filesystem::is_regular_file(path, unreadable) && looks_like_hdf5(path)) return Snapshot::open(path);
  return Checkpoint::open(path);
}

}  // namespace

TensorReader::TensorReader(const std::string& path) : file_(open(path)) {}

std::span<const TensorInfo> TensorReader::tensors() const noexcept {
  return std::visit([](const auto& file) { return file.tensors(); }, file_);
}

std::span<const Digest> TensorReader::claimed_digests() const noexcept {
  const auto* snapshot = std::get_if<Snapshot>(&file_);
  return snapshot != nullptr ? snapshot->claimed_digests() : std::span<const Digest>();
}

std::uint64_t TensorReader::size_bytes() const {
  std::uint64_t bytes = 0;
  for (const TensorInfo& tensor : tensors()) bytes += tensor.size_bytes().value();
  return bytes;
}

void TensorReader::read(std::size_t index, std::uint64_t offset, std::span<std::byte> destination) const {
  if (const auto* snapshot = std::get_if<Snapshot>(&file_)) {
    const std::scoped_lock lock(hdf5_);
    return snapshot->read(index, offset, destination);
  }
  std::get<Checkpoint>(file_).read(index, offset, destination);
}

}  // namespace weightcast
