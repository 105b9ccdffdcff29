#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "weightcast/capi/destinations.hpp"
#include "weightcast/capi/weightcast.h"
#include "weightcast/comm/communicator.hpp"
#include "weightcast/trainer/training_pieces.hpp"
#include "weightcast/update/update_group.hpp"

/// What the functions of weightcast.h have in common: exceptions become a status, structs of C become values.
namespace weightcast {

/// Runs `body`: WC_OK, or the status of what it threw, whose text wc_last_error() then has.
int guarded(FunctionRef<void()> body) noexcept;
/// Error(usage) saying that `what` may not be null.
void expect_argument(const void* argument, std::string_view what);
/// Runs `body`, unless a rank was `lost`, which is noted here when it happens.
void unless_lost(std::optional<Error>& lost, FunctionRef<void()> body);
/// guarded() for a call on a handle that communicates.
template <typename Handle>
int guarded(Handle* handle, FunctionRef<void()> body) noexcept {
  return guarded([&] {
    expect_argument(handle, "the handle");
    unless_lost(handle->lost, body);
  });
}

/// Error(usage) unless a struct of the caller's has the size that it has here.
void expect_size(std::size_t given, std::size_t expected, std::string_view type);

/// A struct of the caller's, which may be of an earlier version of the header: then it has one of `earlier` sizes, and
/// what it lacks is zero. Error(usage) for any other size.
template <typename Struct>
Struct read_struct(const Struct& given, std::span<const std::size_t> earlier, std::string_view type) {
  if (std::ranges::find(earlier, given.size) == earlier.end()) expect_size(given.size, sizeof(Struct), type);
  Struct result{};
  std::memcpy(&result, &given, given.size);
  return result;
}
inline constexpr std::array earlier_tensor_sizes{offsetof(wc_tensor, strides_bytes), offsetof(wc_tensor, offsets)};
inline constexpr std::array earlier_options_sizes{offsetof(wc_options, destinations), offsetof(wc_options, trainers),
                                                  offsetof(wc_options, delta_limit),
                                                  offsetof(wc_options, expert_parallel)};
inline constexpr std::array earlier_update_sizes{offsetof(wc_update, payload)};
inline wc_options read_options_struct(const wc_options& given) {
  return read_struct(given, earlier_options_sizes, "wc_options");
}

/// Error(config) saying why when MPI cannot be used.
void expect_mpi();
Placement placement_of(int memory, int device);

/// Name, dtype and shape. Error(usage) for null or unknown ones.
TensorInfo read_info(const wc_tensor& tensor);
/// All of it; Error(usage) also for what cannot be in memory: see wc_tensor.
ForeignTensor read_tensor(const wc_tensor& tensor);
/// Whether a table's memory is read or written, or only what the table says of it.
enum class Memory : std::uint8_t { used, not_looked_at };
std::vector<ForeignTensor> read_table(const wc_tensor* tensors, std::size_t count, Memory memory = Memory::used);
/// The same of destinations, which are shards: Error(usage) for those that say where they lie in a parameter.
std::vector<ForeignTensor> read_destinations(const wc_tensor* tensors, std::size_t count);
TrainingTensor training_tensor(const ForeignTensor& tensor);
/// Error(usage) unless write_update() can write what the caller has given; null is fine.
void expect_update(const wc_update* update);
/// As much of a result as the caller's struct has room for. `local_s`: see wc_update. Nothing when `update` is null.
void write_update(wc_update* update, const UpdateResult& result, double local_s);

/// This process in an update group that is being formed: everything that one rank can find out without the others.
struct Membership {
  /// Collective over the communicator of `options`: all throw, or none, but for Error(usage) and a missing MPI.
  Membership(const wc_options* options, bool trainer);

  std::size_t trainer_rank() const { return static_cast<std::size_t>(comm.rank()); }
  std::size_t tp_rank() const { return plan.roster().tp_rank(comm.rank()); }
  Deadline deadline() const noexcept { return Deadline::after(group.timeout_s); }
  /// For work on all weights that is not communication.
  Deadline long_deadline() const noexcept { return deadline().plus(longest_disk_s(plan.model.size_bytes())); }

  Communicator comm, trainer_ranks;  // trainer_ranks: empty on engines
  TransferPlan plan;
  GroupOptions group;
  CommitMode commit = CommitMode::swap;
};

}  // namespace weightcast
