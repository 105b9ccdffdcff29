#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "weightcast/core/bytes.hpp"
#include "weightcast/core/error.hpp"
#include "weightcast/core/file.hpp"
#include "weightcast/snapshot/column_gather.hpp"
#include "weightcast/snapshot/snapshot.hpp"
#include "weightcast/snapshot/snapshot_layout.hpp"

namespace weightcast {
namespace {

constexpr std::uint64_t block_bytes = 8 * mebibyte;

void finish(OutputFile& output, const std::string& user_block) {
  output.write(0, std::as_bytes(std::span(user_block)));
  output.commit();
}

/// Opens an existing file through MPI-IO. Collective; cannot be given a deadline, so everybody must be known to be
/// there.
Hdf5Id open_together(const std::string& file_name, MPI_Comm comm) {
  const Hdf5Id access = lock_free_access();
  check_hdf5(H5Pset_fapl_mpio(access.get(), comm, MPI_INFO_NULL), ExitCode::internal, "set properties");
  return own_hdf5(H5Fopen(file_name.c_str(), H5F_ACC_RDWR, access.get()), ExitCode::io_error,
                  fmt::format("open {} on all ranks", file_name));
}

/// Writes this rank's shards of whole rows, each at its place.
void write_row_shards(hid_t file, const TransferPlan& plan, std::size_t rank, std::span<const std::byte> slot,
                      Deadline deadline, FunctionRef<void()> between) {
  for (std::size_t i = 0; i < plan.model.parameters.size(); ++i) {
    const Slice slice = shard_of(plan.model.parameters[i], plan.tp, rank);
    if (slice.empty() || plan.copy(rank, i) || cut_in_columns(plan, i)) continue;
    if (deadline.passed())
      fail(ExitCode::deadline, "writing the snapshot took too long, at {}", plan.model.parameters[i].info.name);
    const Shard& shard = plan.ranks[rank].shards[i];
    WEIGHTCAST_EXPECTS(shard.contiguous_destination() && shard.destination_offset + shard.size_bytes() <= slot.size());
    snapshot_layout::write(file, plan.model.parameters[i].info, slice, slot.data() + shard.destination_offset, between);
  }
}

void sync_file(const std::string& file_name) {
  const UniqueFd fd(::open(file_name.c_str(), O_RDWR | O_CLOEXEC));
  if (!fd) fail(ExitCode::io_error, "cannot write {} to disk: {}", file_name, std::strerror(errno));
  sync_to_disk(fd.get(), file_name);
}

}  // namespace

void probe_snapshot(const OutputName& name) {
  const QuietHdf5 quiet;
  OutputFile output(name);
  Hdf5Id file = snapshot_layout::create(output.temporary_path(), {}, name.path());
  close_hdf5(file, ExitCode::io_error, fmt::format("write {}", name.path()));
  file = open_together(output.temporary_path(), MPI_COMM_SELF);
  close_hdf5(file, ExitCode::io_error, fmt::format("write {}", name.path()));
}

void write_snapshot(const std::string& path, const Communicator& replica, const TransferPlan& plan,
                    std::span<const std::byte> slot, const SnapshotInfo& info, Deadline deadline,
                    const std::optional<OutputName>& name, FunctionRef<void()> between) {
  WEIGHTCAST_EXPECTS(static_cast<std::uint64_t>(replica.size()) == plan.tp);
  const QuietHdf5 quiet;
  const auto rank = static_cast<std::size_t>(replica.rank());
  std::string user_block;
  std::optional<OutputFile> output;
  agree(replica, "snapshot: create", deadline, [&] {
    if (rank != 0) return;
    user_block = snapshot_layout::make_user_block(info);
    output.emplace(name ? *name : OutputName(path), snapshot_layout::most_bytes(plan.model));
    Hdf5Id file = snapshot_layout::create(output->temporary_path(), plan.model, path);
    snapshot_layout::set_digests(file.get(), plan.model, info.digests);
    close_hdf5(file, ExitCode::io_error, fmt::format("write {}", path));
    snapshot_layout::reserve(output->temporary_path(), path);
  });
  const std::string file_name = replica.all_gather(output ? output->temporary_path() : "", deadline)[0];

  Hdf5Id file;
  try {
    agree(replica, "snapshot: open", deadline, [&] { file = open_together(file_name, replica.get()); });
    agree(replica, "snapshot: write", deadline,
          [&] { write_row_shards(file.get(), plan, rank, slot, deadline, between); });
    write_column_shards(file.get(), replica, plan, slot, deadline, between);
  } catch (const Error& error) {
    if (error.reach() != Error::Reach::everybody)
      file.release();  // closing is collective and would wait for the rank that is gone
    throw;
  }
  agree(replica, "snapshot: close", deadline,
        [&] { close_hdf5(file, ExitCode::io_error, fmt::format("write {}", path)); });
  agree(replica, "snapshot: sync", deadline, [&] { sync_file(file_name); });
  agree(replica, "snapshot: commit", deadline, [&] {
    if (output) finish(*output, user_block);
  });
}

std::vector<Digest> write_snapshot(
    const OutputName& name, const Model& model,
    FunctionRef<void(std::size_t index, std::uint64_t offset, std::span<std::byte> destination)> content,
    const SnapshotInfo& info, FunctionRef<void(std::uint64_t bytes)> progress) {
  const QuietHdf5 quiet;
  const std::string user_block = snapshot_layout::make_user_block(info);
  const std::string& path = name.path();
  OutputFile output(name, snapshot_layout::most_bytes(model));
  Hdf5Id file = snapshot_layout::create(output.temporary_path(), model, path);
  check_hdf5(H5Fflush(file.get(), H5F_SCOPE_GLOBAL), ExitCode::io_error, fmt::format("write {}", path));
  snapshot_layout::reserve(output.temporary_path(), path);

  std::vector<Digest> digests(model.parameters.size());
  std::vector<std::byte> block;
  for (std::size_t i = 0; i < digests.size(); ++i) {
    const TensorInfo& tensor = model.parameters[i].info;
    const MatrixShape shape = matrix_of(tensor);
    const std::uint64_t row_bytes = shape.columns * static_cast<std::uint64_t>(bits(tensor.dtype)) / 8;
    const std::uint64_t step = std::max<std::uint64_t>(1, block_bytes / std::max<std::uint64_t>(1, row_bytes));
    for (std::uint64_t row = 0; row < shape.rows && row_bytes > 0; row += step) {
      const std::uint64_t rows = std::min(step, shape.rows - row);
      block.resize(rows * row_bytes);
      content(i, row * row_bytes, block);
      digests[i] += digest_bytes(block, row * row_bytes);
      snapshot_layout::write(file.get(), tensor, {row, 0, rows, shape.columns}, block.data());
      if (progress) progress(block.size());
    }
  }
  snapshot_layout::set_digests(file.get(), model, digests);
  close_hdf5(file, ExitCode::io_error, fmt::format("write {}", path));
  finish(output, user_block);
  return digests;
}

}  // namespace weightcast
