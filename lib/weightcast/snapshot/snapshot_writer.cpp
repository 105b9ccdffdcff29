#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <vector>

#include "weightcast/comm/message.hpp"
#include "weightcast/core/bytes.hpp"
#include "weightcast/core/error.hpp"
#include "weightcast/core/file.hpp"
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
  try {
    return own_hdf5(H5Fopen(file_name.c_str(), H5F_ACC_RDWR, access.get()), ExitCode::io_error,
                    fmt::format("open {} on all ranks", file_name));
  } catch (const Error& error) {
    if (::access("/dev/shm", W_OK | X_OK) == 0) throw;
    throw Error(error.code(), error.what(),
                "make /dev/shm writable for this user (mode 1777): Open MPI keeps there what ranks share of a file");
  }
}

constexpr std::uint64_t staging_bytes = 16 * mebibyte;
constexpr int tag_piece = 0;

std::uint64_t row_bytes_of(const TensorInfo& info) {
  return matrix_of(info).columns * element_bytes(info.dtype);
}

/// True when the shards of this parameter are less wide than its rows.
bool cut_in_columns(const TransferPlan& plan, std::size_t parameter) {
  for (const RankPlan& rank : plan.ranks) {  // of an expert's only those of one group have any
    const Shard& shard = rank.shards[parameter];
    if (shard.rows > 0) return shard.row_bytes < row_bytes_of(plan.model.parameters[parameter].info);
  }
  return false;
}

// Written as they are held, such parameters would be millions of runs of a few KiB. Their rows are put together in
// memory, some at a time, on the ranks in turn.

/// Some rows of a parameter, counted from its first, which one rank puts together and writes.
struct Task {
  std::size_t parameter = 0;
  std::uint64_t row = 0, rows = 0;
};

std::vector<Task> make_tasks(const TransferPlan& plan) {
  std::vector<Task> tasks;
  for (std::size_t i = 0; i < plan.model.parameters.size(); ++i) {
    if (!cut_in_columns(plan, i)) continue;
    const TensorInfo& info = plan.model.parameters[i].info;
    const std::uint64_t rows = plan.model.parameters[i].rows,
                        step = std::max<std::uint64_t>(1, staging_bytes / row_bytes_of(info));
    for (std::uint64_t row = 0; row < rows; row += step) tasks.push_back({i, row, std::min(step, rows - row)});
  }
  return tasks;
}

/// One round: the owner of each task (its position) receives that task's pieces from all ranks, by rank, into `pieces`.
void exchange(const Communicator& replica, const TransferPlan& plan, std::span<const Task> tasks,
              std::span<const std::byte> slot, std::vector<std::byte>& pieces, Deadline deadline) {
  const auto rank = static_cast<std::size_t>(replica.rank());
  std::vector<Message> messages;
  if (rank < tasks.size()) {
    const Task& task = tasks[rank];
    pieces.resize(task.rows * row_bytes_of(plan.model.parameters[task.parameter].info));
    std::uint64_t offset = 0;
    for (std::size_t peer = 0; peer < plan.tp; ++peer) {
      const std::uint64_t size = task.rows * plan.ranks[peer].shards[task.parameter].row_bytes;
      messages.push_back(
          Message::receive(replica, std::span(pieces).subspan(offset, size), static_cast<int>(peer), tag_piece));
      offset += size;
    }
    WEIGHTCAST_EXPECTS(offset == pieces.size());
  }
  for (std::size_t owner = 0; owner < tasks.size(); ++owner) {
    const Shard& shard = plan.ranks[rank].shards[tasks[owner].parameter];
    WEIGHTCAST_EXPECTS(shard.contiguous_destination() && shard.destination_offset + shard.size_bytes() <= slot.size());
    const auto piece = slot.subspan(shard.destination_offset + tasks[owner].row * shard.row_bytes,
                                    tasks[owner].rows * shard.row_bytes);
    messages.push_back(Message::send(replica, piece, static_cast<int>(owner), tag_piece));
  }
  for (auto& message : messages) message.wait(deadline, "gathering columns for the snapshot");
}

/// Puts the ranks' pieces side by side.
void assemble(const TransferPlan& plan, const Task& task, std::span<const std::byte> pieces,
              std::vector<std::byte>& whole) {
  const std::uint64_t row_bytes = row_bytes_of(plan.model.parameters[task.parameter].info);
  whole.resize(pieces.size());
  const std::byte* from = pieces.data();
  std::uint64_t column = 0;
  for (const RankPlan& peer : plan.ranks) {
    const std::uint64_t width = peer.shards[task.parameter].row_bytes;
    for (std::uint64_t row = 0; row < task.rows; ++row, from += width)
      std::memcpy(whole.data() + row * row_bytes + column, from, width);
    column += width;
  }
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

/// Writes all parameters that are cut in columns. Collective over `replica` (rank = tp rank); staging memory at most
/// 32 MiB per rank, or twice the longest row. `between` is called now and then and may throw. On failure every rank
/// throws the same error.
void write_column_shards(hid_t file, const Communicator& replica, const TransferPlan& plan,
                         std::span<const std::byte> slot, Deadline deadline, FunctionRef<void()> between) {
  const std::vector<Task> tasks = make_tasks(plan);
  const auto rank = static_cast<std::size_t>(replica.rank());
  std::vector<std::byte> pieces, whole;
  agree(replica, "snapshot: write columns", deadline, [&] {
    std::exception_ptr failure;  // of writing: the others still wait for our pieces, so we go on sending
    for (std::size_t first = 0; first < tasks.size(); first += plan.tp) {
      const auto round = std::span(tasks).subspan(first, std::min<std::size_t>(plan.tp, tasks.size() - first));
      exchange(replica, plan, round, slot, pieces, deadline);
      if (rank >= round.size() || failure) continue;
      try {
        const auto& [parameter, row, rows] = round[rank];
        const auto& rule = plan.model.parameters[parameter];
        assemble(plan, round[rank], pieces, whole);
        snapshot_layout::write(file, rule.info, {rule.row + row, 0, rows, matrix_of(rule.info).columns}, whole.data(),
                               between);
      } catch (...) {
        failure = std::current_exception();
      }
    }
    if (failure) std::rethrow_exception(failure);
  });
}

void sync_file(const std::string& file_name) {
  const UniqueFd fd(::open(file_name.c_str(), O_RDWR | O_CLOEXEC));
  if (!fd) fail(ExitCode::io_error, "cannot write {} to disk: {}", file_name, std::strerror(errno));
  sync_to_disk(fd.get(), file_name);
}

}  // namespace

void probe_snapshot(const OutputName& name, const Model& model) {
  const QuietHdf5 quiet;
  OutputFile output(name);
  expect_space(name.target(), model.size_bytes());
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
    const Model tensors = tensors_of(plan.model);
    user_block = snapshot_layout::make_user_block(info);
    output.emplace(name ? *name : OutputName(path), snapshot_layout::most_bytes(tensors));
    Hdf5Id file = snapshot_layout::create(output->temporary_path(), tensors, path);
    snapshot_layout::set_digests(file.get(), tensors, tensor_digests(plan.model, info.digests));
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
    const std::uint64_t row_bytes = row_bytes_of(tensor);
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
