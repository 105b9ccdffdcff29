#include "weightcast/snapshot/column_gather.hpp"

#include <algorithm>
#include <cstring>
#include <vector>

#include "weightcast/comm/message.hpp"
#include "weightcast/core/bytes.hpp"
#include "weightcast/core/error.hpp"
#include "weightcast/snapshot/snapshot_layout.hpp"

namespace weightcast {
namespace {

constexpr std::uint64_t staging_bytes = 16 * mebibyte;
constexpr int tag_piece = 0;

std::uint64_t row_bytes_of(const TensorInfo& info) {
  return matrix_of(info).columns * static_cast<std::uint64_t>(bits(info.dtype)) / 8;
}

/// Some rows of a parameter, which one rank puts together and writes.
struct Task {
  std::size_t parameter = 0;
  std::uint64_t row = 0, rows = 0;
};

std::vector<Task> make_tasks(const TransferPlan& plan) {
  std::vector<Task> tasks;
  for (std::size_t i = 0; i < plan.model.parameters.size(); ++i) {
    if (!cut_in_columns(plan, i)) continue;
    const TensorInfo& info = plan.model.parameters[i].info;
    const std::uint64_t rows = matrix_of(info).rows,
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

}  // namespace

bool cut_in_columns(const TransferPlan& plan, std::size_t parameter) {
  const Shard& shard = plan.ranks[0].shards[parameter];
  return shard.rows > 0 && shard.row_bytes < row_bytes_of(plan.model.parameters[parameter].info);
}

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
        const TensorInfo& info = plan.model.parameters[round[rank].parameter].info;
        assemble(plan, round[rank], pieces, whole);
        snapshot_layout::write(file, info, {round[rank].row, 0, round[rank].rows, matrix_of(info).columns},
                               whole.data(), between);
      } catch (...) {
        failure = std::current_exception();
      }
    }
    if (failure) std::rethrow_exception(failure);
  });
}

}  // namespace weightcast
