#include <fcntl.h>
#include <sys/file.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <filesystem>

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

struct DataRange {
  std::uint64_t offset, size_bytes;
};

/// Data must lie inside the file, no byte twice.
void check_ranges(const std::string& path, std::uint64_t file_bytes, std::vector<DataRange> ranges) {
  std::erase_if(ranges, [](const DataRange& range) { return range.size_bytes == 0; });
  for (const DataRange& range : ranges) {
    if (range.offset > file_bytes || range.size_bytes > file_bytes - range.offset) {
      fail(ExitCode::bad_data, "{}: {} bytes of data at {} lie outside of the file's {} bytes; was it cut off?", path,
           range.size_bytes, range.offset, file_bytes);
    }
  }
  std::ranges::sort(ranges, {}, &DataRange::offset);
  const auto overlap = [](const DataRange& a, const DataRange& b) { return a.offset + a.size_bytes > b.offset; };
  if (std::ranges::adjacent_find(ranges, overlap) != ranges.end())
    fail(ExitCode::bad_data, "{}: two parameters share bytes of the file", path);
}

void check_set(const std::string& path, std::span<const TensorInfo> tensors, std::span<const Digest> digests,
               const Digest& claimed) {
  if (digest_of_set(tensors, digests) != claimed) {
    fail(ExitCode::bad_data, "{}: names, shapes, types or digests of the parameters do not match the digest of the set",
         path);
  }
}

/// Where the base of a delta is: beside it. A name that leads anywhere else is refused.
std::string base_path(const std::string& delta, const std::string& base) {
  if (!snapshot_layout::plain_file_name(base)) {
    fail(ExitCode::bad_data, "{}: its base '{}' is not the plain name of a file in its folder", delta, printable(base));
  }
  return std::filesystem::path(delta).replace_filename(base);
}

bool one_file(const std::string& a, const std::string& b) {
  std::error_code unreadable;  // which the one who opens it will say
  return std::filesystem::equivalent(a, b, unreadable);
}

}  // namespace

/// A file of a chain and what its child process said of it.
struct Snapshot::Opened {
  explicit Opened(const std::string& path) : file(path), lock(lock_for_reading(path)) {
    if (!looks_like_hdf5(path)) {
      throw Error(ExitCode::bad_data, fmt::format("{} is not an HDF5 file", path),
                  "give a snapshot that weightcast wrote");
    }
    if (!has_signature(file, 0)) {
      std::string block(snapshot_layout::user_block_bytes, '\0');
      file.read(0, std::as_writable_bytes(std::span(block)));
      version = snapshot_layout::parse_user_block(block, path);
    }
    walked = walk_snapshot_apart(path);
    std::vector<DataRange> ranges;
    for (const WalkedDataset& dataset : walked.datasets) {
      const auto size = dataset.info.size_bytes();
      if (!size) fail(ExitCode::bad_data, "{}: {} is too large", path, printable(dataset.info.name));
      ranges.push_back({dataset.offset, *size});
    }
    if (walked.delta) {
      for (const WalkedChange& change : walked.delta->changes) {
        for (const WalkedRun& run : {change.starts, change.indices, change.values})
          ranges.push_back({run.offset, run.size_bytes});
      }
    }
    check_ranges(path, file.size(), std::move(ranges));
  }

  InputFile file;
  UniqueFd lock;
  std::uint64_t version = 0;
  WalkedFile walked;
};

Snapshot Snapshot::open(const std::string& path) {
  std::vector<Opened> files;
  files.emplace_back(path);
  while (files.back().walked.delta) {
    const std::string delta = files.back().file.path(), base = base_path(delta, files.back().walked.delta->base);
    if (files.size() > chain_limit)
      fail(ExitCode::bad_data, "{} builds on more than {} deltas", printable(path), chain_limit);
    for (const Opened& file : files) {
      if (one_file(file.file.path(), base))
        fail(ExitCode::bad_data, "the chain of {} never ends: {} builds on {} again", path, delta, base);
    }
    try {
      files.emplace_back(base);
    } catch (const Error& error) {
      throw Error(error.code(), fmt::format("the base of {}: {}", delta, error.what()),
                  error.code() == ExitCode::no_input ? "put the base beside its delta, under the name that it had"
                                                     : error.hint());
    }
  }
  return Snapshot(std::move(files));
}

Snapshot::Snapshot(std::vector<Opened> files)
    : version_(files.front().version),
      config_(std::move(files.front().walked.config)),
      digest_(files.front().walked.digest) {
  for (Opened& file : files) {
    chain_.push_back(file.file.path());
    locks_.push_back(std::move(file.lock));
  }
  Opened& whole = files.back();
  std::ranges::sort(whole.walked.datasets, {},
                    [](const WalkedDataset& dataset) -> const std::string& { return dataset.info.name; });
  for (WalkedDataset& dataset : whole.walked.datasets) {
    tensors_.push_back(std::move(dataset.info));
    digests_.push_back(dataset.digest);
    offsets_.push_back(dataset.offset);
  }
  check_set(chain_.back(), tensors_, digests_, whole.walked.digest);
  whole_.emplace(std::move(whole.file));
  for (std::size_t i = files.size() - 1; i-- > 0;) {
    WalkedDelta& delta = *files[i].walked.delta;
    const Digest& found = files[i + 1].walked.digest;
    if (delta.base_digest != found) {
      throw Error(ExitCode::bad_data,
                  fmt::format("{} was made against a base with the digest {}, but {} has {}", chain_[i],
                              delta.base_digest.hex(), chain_[i + 1], found.hex()),
                  "put the base that it was made against under that name");
    }
    deltas_.emplace_back(std::move(files[i].file), std::move(delta.changes), tensors_, digests_);
    check_set(chain_[i], tensors_, digests_, files[i].walked.digest);
  }
}

void Snapshot::read(std::size_t index, std::uint64_t offset, std::span<std::byte> destination) const {
  const TensorInfo& tensor = tensors_.at(index);
  const std::uint64_t size = tensor.size_bytes().value();
  WEIGHTCAST_EXPECTS(offset <= size && destination.size() <= size - offset);
  whole_->read(offsets_[index] + offset, destination);
  for (const DeltaLayer& delta : deltas_) delta.apply(index, tensor, offset, destination);
}

bool looks_like_hdf5(const std::string& path) {
  const InputFile file(path);
  return has_signature(file, snapshot_layout::user_block_bytes) || has_signature(file, 0);
}

}  // namespace weightcast
