#include <algorithm>
#include <array>
#include <cstring>
#include <filesystem>
#include <numeric>
#include <vector>

#include "weightcast/core/bytes.hpp"
#include "weightcast/core/error.hpp"
#include "weightcast/core/file.hpp"
#include "weightcast/core/parallel.hpp"
#include "weightcast/snapshot/snapshot.hpp"
#include "weightcast/snapshot/snapshot_layout.hpp"

namespace weightcast {
namespace {

using Content = FunctionRef<void(std::size_t index, std::uint64_t offset, std::span<std::byte> destination)>;
namespace fs = std::filesystem;

constexpr std::uint64_t piece_blocks = 256;  // 1 Mi elements

/// Where each parameter is in the base. Both sides are walked by name, so that the first difference is the one named.
std::vector<std::size_t> places_in(const Snapshot& base, const Model& model, const std::string& what) {
  const auto refuse = [&](const std::string& difference) {
    throw Error(ExitCode::bad_data,
                fmt::format("no delta leads from {} to {}: {}", base.path(), what, printable(difference)),
                "a delta needs the same names, shapes and types: write a whole snapshot, without --delta");
  };
  std::vector<std::size_t> order(model.parameters.size()), places(order.size());
  const auto info_of = [&](std::size_t parameter) -> const TensorInfo& { return model.parameters[parameter].info; };
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::ranges::sort(order, {}, [&](std::size_t parameter) -> const std::string& { return info_of(parameter).name; });
  const auto tensors = base.tensors();
  for (std::size_t i = 0; i < std::max(order.size(), tensors.size()); ++i) {
    const auto* ours = i < order.size() ? &info_of(order[i]) : nullptr;
    const auto* theirs = i < tensors.size() ? &tensors[i] : nullptr;
    if (theirs == nullptr || (ours != nullptr && ours->name < theirs->name))
      refuse(fmt::format("the base has no {}", ours->name));
    if (ours == nullptr || theirs->name < ours->name) refuse(fmt::format("only the base has {}", theirs->name));
    if (*ours != *theirs)
      refuse(fmt::format("{} is {}, in the base {}", ours->name, ours->describe(), theirs->describe()));
    places[order[i]] = i;
  }
  return places;
}

/// The name by which a delta will find its base: of the file behind links, if that is here, because links are changed.
std::string base_name(const OutputName& name, const Snapshot& base) {
  for (const std::string& file : base.chain()) {
    std::error_code nothing_there;
    if (fs::equivalent(file, name.target(), nothing_there)) {
      fail(ExitCode::cant_create, "cannot write {}: its base {} is made of it", printable(name.path()),
           printable(base.path()));
    }
  }
  if (base.chain().size() > Snapshot::chain_limit) {
    throw Error(ExitCode::config,
                fmt::format("{} is the end of a chain of {} deltas, as many as there may be", printable(base.path()),
                            Snapshot::chain_limit),
                "write this version whole, without --delta, and go on from it");
  }
  std::error_code unreadable;
  const auto folder = fs::absolute(name.path()).parent_path();
  for (const fs::path& path : {fs::canonical(base.path(), unreadable), fs::absolute(base.path())}) {
    if (!fs::equivalent(path.parent_path(), folder, unreadable)) continue;
    if (snapshot_layout::plain_file_name(path.filename())) return path.filename();
    fail(ExitCode::usage, "a delta cannot note the name of its base {}: it has control characters",
         printable(base.path()));
  }
  throw Error(ExitCode::usage,
              fmt::format("the base {} is not in the folder of {}", printable(base.path()), printable(name.path())),
              "a delta is read with its base beside it: write it there");
}

/// A stretch of a parameter, in blocks.
struct Piece {
  std::size_t parameter;
  std::uint64_t block, blocks;
};

/// Old and new bytes of a piece.
struct Sides {
  std::vector<std::byte> old_bytes, new_bytes;
};

/// What changed in a parameter.
struct Change {
  std::vector<std::uint64_t> starts;  ///< of its blocks
  Digest base_digest, digest;
  std::uint64_t entries() const { return starts.back(); }
};

class DeltaWriter {
 public:
  DeltaWriter(const Snapshot& base, const Model& model, std::vector<std::size_t> places, Content content,
              FunctionRef<void(std::uint64_t bytes)> progress)
      : base_(base),
        model_(model),
        places_(std::move(places)),
        content_(content),
        progress_(progress),
        changes_(model.parameters.size()) {}

  /// Reads both versions and counts. The base is held against its digests on the way.
  void compare() {
    std::vector<Piece> pieces;
    for (std::size_t p = 0; p < changes_.size(); ++p) {
      const std::uint64_t blocks = delta_block_count(info(p).elements().value());
      changes_[p].starts.assign(blocks + 1, 0);
      for (std::uint64_t block = 0; block < blocks; block += piece_blocks)
        pieces.push_back({p, block, std::min(piece_blocks, blocks - block)});
    }
    std::vector<std::pair<Digest, Digest>> digests(pieces.size());
    parallel_for(
        pieces.size(), available_cores(), [] { return Sides(); },
        [&](Sides& sides, std::size_t i) {
          const Piece& piece = pieces[i];
          const std::uint64_t offset = read(piece, sides);
          digests[i] = {digest_bytes(sides.old_bytes, offset), digest_bytes(sides.new_bytes, offset)};
          for_changes(piece, sides, [&](std::uint64_t block, std::uint16_t, std::span<const std::byte>) {
            ++changes_[piece.parameter].starts[block + 1];
          });
        });
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      changes_[pieces[i].parameter].base_digest += digests[i].first;
      changes_[pieces[i].parameter].digest += digests[i].second;
    }
    for (std::size_t p = 0; p < changes_.size(); ++p) {
      std::partial_sum(changes_[p].starts.begin(), changes_[p].starts.end(), changes_[p].starts.begin());
      const Digest& claimed = base_.claimed_digests()[places_[p]];
      if (changes_[p].base_digest == claimed) continue;
      throw Error(ExitCode::mismatch,
                  fmt::format("{}: {} has the digest {}, but the file says {}", base_.path(), printable(info(p).name),
                              changes_[p].base_digest.hex(), claimed.hex()),
                  "the base was damaged after it was written: nothing can be built on it");
    }
  }

  DeltaSummary summary() const {
    DeltaSummary summary;
    for (std::size_t p = 0; p < changes_.size(); ++p) {
      const Change& change = changes_[p];
      summary.digests.push_back(change.digest);
      summary.elements += info(p).elements().value();
      if (change.entries() == 0) continue;
      ++summary.changed_parameters;
      summary.changed_elements += change.entries();
      for (const std::uint64_t size : sizes_of(p)) summary.delta_bytes += size;
    }
    return summary;
  }

  /// Size that the file will not exceed.
  std::uint64_t most_bytes() const {
    constexpr std::uint64_t headers_bytes = 8 * kibibyte;  // of a group and three datasets, with their attributes
    std::uint64_t bytes = snapshot_layout::most_bytes_of_empty();
    for (std::size_t p = 0; p < changes_.size(); ++p) {
      if (changes_[p].entries() == 0) continue;
      for (const std::uint64_t size : sizes_of(p)) bytes += snapshot_layout::most_bytes_of(size);
      bytes += headers_bytes + info(p).name.size();
    }
    return bytes;
  }

  /// Makes the file with all that is known before the data.
  Hdf5Id create(const std::string& file_name, const std::string& base_file, const Digest& digest,
                const std::string& path) const {
    Hdf5Id file = snapshot_layout::create_file(file_name, snapshot_layout::delta_format_name, model_, path);
    snapshot_layout::add_text(file.get(), "digest", digest.hex());
    snapshot_layout::add_text(file.get(), "base", base_file);
    snapshot_layout::add_text(file.get(), "base_digest", base_.claimed_digest().hex());
    const Hdf5Id delta = snapshot_layout::create_group(file.get(), "delta");
    for (std::size_t p = 0; p < changes_.size(); ++p) {
      const Change& change = changes_[p];
      if (change.entries() == 0) continue;
      const Hdf5Id group = snapshot_layout::create_group(delta.get(), info(p).name);
      snapshot_layout::add_text(group.get(), "dtype", std::string(name(info(p).dtype)));
      snapshot_layout::add_text(group.get(), "base_digest", change.base_digest.hex());
      snapshot_layout::add_text(group.get(), "digest", change.digest.hex());
      snapshot_layout::create_dataset(group.get(), "starts", H5T_STD_U64LE, {change.starts.size()});
      snapshot_layout::create_dataset(group.get(), "indices", H5T_STD_U16LE, {change.entries()});
      snapshot_layout::create_dataset(group.get(), "values", hdf5_type(info(p).dtype).get(), {change.entries()});
    }
    return file;
  }

  /// Reads what has changes once more, and writes them.
  void write(hid_t file) {
    for (std::size_t p = 0; p < changes_.size(); ++p) {
      if (changes_[p].entries() > 0) write_change(file, p);
    }
  }

 private:
  const TensorInfo& info(std::size_t parameter) const { return model_.parameters[parameter].info; }

  /// Bytes of the starts, indices and values of a parameter.
  std::array<std::uint64_t, 3> sizes_of(std::size_t parameter) const {
    const Change& change = changes_[parameter];
    return {change.starts.size() * sizeof(std::uint64_t), change.entries() * sizeof(std::uint16_t),
            change.entries() * element_bytes(info(parameter).dtype)};
  }

  /// Fills both sides; gives the byte at which they begin.
  std::uint64_t read(const Piece& piece, Sides& sides) const {
    const std::uint64_t width = element_bytes(info(piece.parameter).dtype), first = piece.block * delta_block_elements;
    const std::uint64_t size =
        std::min(piece.blocks * delta_block_elements, info(piece.parameter).elements().value() - first) * width;
    sides.old_bytes.resize(size);
    sides.new_bytes.resize(size);
    base_.read(places_[piece.parameter], first * width, sides.old_bytes);
    content_(piece.parameter, first * width, sides.new_bytes);
    if (progress_) progress_(size);
    return first * width;
  }

  /// `tell(block, index, new bits)` for each element that changed, ascending.
  template <typename Tell>
  void for_changes(const Piece& piece, const Sides& sides, const Tell& tell) const {
    const std::uint64_t width = element_bytes(info(piece.parameter).dtype), block_bytes = delta_block_elements * width;
    const std::byte *before = sides.old_bytes.data(), *after = sides.new_bytes.data();
    for (std::uint64_t block = 0; block < piece.blocks; ++block) {
      const std::uint64_t begin = block * block_bytes, size = std::min(block_bytes, sides.new_bytes.size() - begin);
      if (std::memcmp(before + begin, after + begin, size) == 0) continue;
      for (std::uint64_t at = 0; at < size; at += width) {
        if (std::memcmp(before + begin + at, after + begin + at, width) != 0)
          tell(piece.block + block, static_cast<std::uint16_t>(at / width), std::span(after + begin + at, width));
      }
    }
  }

  void write_change(hid_t file, std::size_t p) {
    const Change& change = changes_[p];
    const std::string group = "/delta/" + info(p).name;
    snapshot_layout::write_row(file, group + "/starts", H5T_STD_U64LE, 0, change.starts.size(), change.starts.data());
    const Hdf5Id type = hdf5_type(info(p).dtype);
    std::vector<std::uint16_t> indices;
    std::vector<std::byte> values;
    const std::uint64_t blocks = change.starts.size() - 1;
    for (std::uint64_t block = 0; block < blocks; block += piece_blocks) {
      const Piece piece{p, block, std::min(piece_blocks, blocks - block)};
      const std::uint64_t first = change.starts[block], count = change.starts[block + piece.blocks] - first;
      if (count == 0) continue;
      read(piece, sides_);
      indices.clear();
      values.clear();
      std::vector<std::uint64_t> counts(piece.blocks, 0);
      for_changes(piece, sides_, [&](std::uint64_t of, std::uint16_t index, std::span<const std::byte> value) {
        ++counts[of - block];
        indices.push_back(index);
        values.insert(values.end(), value.begin(), value.end());
      });
      for (std::uint64_t b = 0; b < piece.blocks; ++b) {
        if (counts[b] != change.starts[block + b + 1] - change.starts[block + b])
          fail(ExitCode::bad_data, "{} changed while it was read", printable(info(p).name));
      }
      snapshot_layout::write_row(file, group + "/indices", H5T_STD_U16LE, first, count, indices.data());
      snapshot_layout::write_row(file, group + "/values", type.get(), first, count, values.data());
    }
  }

  const Snapshot& base_;
  const Model& model_;
  std::vector<std::size_t> places_;
  Content content_;
  FunctionRef<void(std::uint64_t bytes)> progress_;
  std::vector<Change> changes_;
  Sides sides_;
};

}  // namespace

DeltaSummary write_delta_snapshot(const OutputName& name, const Snapshot& base, const Model& model,
                                  const std::string& what, Content content, const SnapshotInfo& info,
                                  FunctionRef<void(std::uint64_t bytes)> progress) {
  const QuietHdf5 quiet;
  const std::string user_block = snapshot_layout::make_user_block(info, base.version());
  const std::string base_file = base_name(name, base);
  DeltaWriter writer(base, model, places_in(base, model, what), content, progress);
  writer.compare();
  const DeltaSummary summary = writer.summary();

  OutputFile output(name, writer.most_bytes());
  const std::string& path = name.path();
  Hdf5Id file = writer.create(output.temporary_path(), base_file, digest_of_model(model, summary.digests), path);
  check_hdf5(H5Fflush(file.get(), H5F_SCOPE_GLOBAL), ExitCode::io_error, fmt::format("write {}", path));
  snapshot_layout::reserve(output.temporary_path(), path);
  writer.write(file.get());
  close_hdf5(file, ExitCode::io_error, fmt::format("write {}", path));
  output.write(0, std::as_bytes(std::span(user_block)));
  output.commit();
  return summary;
}

}  // namespace weightcast
