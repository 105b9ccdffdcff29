#include <fcntl.h>
#include <sys/file.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>

#include "weightcast/core/bytes.hpp"
#include "weightcast/core/error.hpp"
#include "weightcast/core/file.hpp"
#include "weightcast/snapshot/snapshot.hpp"
#include "weightcast/snapshot/snapshot_layout.hpp"
#include "weightcast/snapshot/snapshot_walk.hpp"

namespace weightcast {
namespace {

constexpr std::string_view signature("\x89HDF\r\n\x1a\n", 8);

bool has_signature(const InputFile& file, std::uint64_t offset) {
  std::array<char, 8> bytes{};
  if (file.size() < offset + bytes.size()) return false;
  file.read(offset, std::as_writable_bytes(std::span(bytes)));
  return std::string_view(bytes.data(), bytes.size()) == signature;
}

/// The lock that HDF5 programs take on a file which they read, unless HDF5_USE_FILE_LOCKING forbids it. Error(busy)
/// when somebody has it open for writing. Where the file system has no locks, nobody is asked.
UniqueFd lock_for_reading(const std::string& path) {
  const char* choice = std::getenv("HDF5_USE_FILE_LOCKING");
  if (choice != nullptr && (std::string_view(choice) == "FALSE" || std::string_view(choice) == "0")) return {};
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (fd && ::flock(fd.get(), LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    throw Error(ExitCode::busy, fmt::format("{} is in use: another program has it open for writing", path),
                "try again when that program has closed it");
  }
  return fd;
}

/// Holds what the child says against the file: data inside it, no byte twice, and the digest of the set.
void check_table(const std::string& path, std::uint64_t file_bytes, const WalkedFile& walked) {
  std::vector<std::pair<std::uint64_t, std::uint64_t>> ranges;
  std::vector<TensorInfo> tensors;
  std::vector<Digest> digests;
  for (const WalkedDataset& dataset : walked.datasets) {
    const auto size = dataset.info.size_bytes();
    if (!size || dataset.offset > file_bytes || *size > file_bytes - dataset.offset) {
      fail(ExitCode::bad_data, "{}: {} lies outside of the file's {} bytes; was it cut off?", path,
           printable(dataset.info.name), file_bytes);
    }
    if (*size > 0) ranges.emplace_back(dataset.offset, *size);
    tensors.push_back(dataset.info);
    digests.push_back(dataset.digest);
  }
  std::ranges::sort(ranges);
  const auto overlap = [](const auto& a, const auto& b) { return a.first + a.second > b.first; };
  if (std::ranges::adjacent_find(ranges, overlap) != ranges.end())
    fail(ExitCode::bad_data, "{}: two parameters share bytes of the file", path);
  if (digest_of_set(tensors, digests) != walked.digest) {
    fail(ExitCode::bad_data, "{}: names, shapes, types or digests of the parameters do not match the digest of the set",
         path);
  }
}

}  // namespace

Snapshot::Snapshot(const std::string& path) : file_(path), lock_(lock_for_reading(path)) {
  if (!looks_like_hdf5(path)) {
    throw Error(ExitCode::bad_data, fmt::format("{} is not an HDF5 file", path),
                "give a snapshot that weightcast wrote");
  }
  if (!has_signature(file_, 0)) {
    std::string block(snapshot_layout::user_block_bytes, '\0');
    file_.read(0, std::as_writable_bytes(std::span(block)));
    version_ = snapshot_layout::parse_user_block(block, path);
  }
  WalkedFile walked = walk_snapshot_apart(path);
  std::ranges::sort(walked.datasets, {},
                    [](const WalkedDataset& dataset) -> const std::string& { return dataset.info.name; });
  check_table(path, file_.size(), walked);
  for (WalkedDataset& dataset : walked.datasets) {
    tensors_.push_back(std::move(dataset.info));
    digests_.push_back(dataset.digest);
    offsets_.push_back(dataset.offset);
  }
}

Snapshot Snapshot::open(const std::string& path) {
  return Snapshot(path);
}

void Snapshot::read(std::size_t index, std::uint64_t offset, std::span<std::byte> destination) const {
  const std::uint64_t size = tensors_.at(index).size_bytes().value();
  WEIGHTCAST_EXPECTS(offset <= size && destination.size() <= size - offset);
  file_.read(offsets_[index] + offset, destination);
}

bool looks_like_hdf5(const std::string& path) {
  const InputFile file(path);
  return has_signature(file, snapshot_layout::user_block_bytes) || has_signature(file, 0);
}

}  // namespace weightcast
