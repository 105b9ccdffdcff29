#pragma once

#include <cstddef>
#include <cstring>
#include <optional>
#include <string_view>

#include "weightcast/capi/destinations.hpp"
#include "weightcast/capi/weightcast.h"
#include "weightcast/comm/communicator.hpp"
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

/// A struct of the caller's, which may be of an earlier version of the header: then it ends before `first_new`, and
/// what it lacks is zero. Error(usage) for any other size.
template <typename Struct>
Struct read_struct(const Struct& given, std::size_t first_new, std::string_view type) {
  if (given.size != first_new) expect_size(given.size, sizeof(Struct), type);
  Struct result{};
  std::memcpy(&result, &given, given.size);
  return result;
}
constexpr std::size_t first_tensor_size = offsetof(wc_tensor, strides_bytes);
inline wc_options read_options_struct(const wc_options& given) {
  return read_struct(given, offsetof(wc_options, destinations), "wc_options");
}

/// Name, dtype and shape. Error(usage) for null or unknown ones.
TensorInfo read_info(const wc_tensor& tensor);
/// All of it; Error(usage) also for what cannot be in memory: see wc_tensor.
ForeignTensor read_tensor(const wc_tensor& tensor);
std::vector<ForeignTensor> read_table(const wc_tensor* tensors, std::size_t count);
/// `local_s`: see wc_update. Nothing when `update` is null.
void write_update(wc_update* update, const UpdateResult& result, double local_s);

/// This process in an update group that is being formed: everything that one rank can find out without the others.
struct Membership {
  /// Collective over the communicator of `options`: all throw, or none, but for Error(usage) and a missing MPI.
  Membership(const wc_options* options, bool trainer);

  std::size_t tp_rank() const { return plan.roster().tp_rank(comm.rank()); }
  Deadline deadline() const noexcept { return Deadline::after(group.timeout_s); }
  /// For work on all weights that is not communication.
  Deadline long_deadline() const noexcept { return deadline().plus(longest_disk_s(plan.model.size_bytes())); }

  Communicator comm;
  TransferPlan plan;
  GroupOptions group;
  CommitMode commit = CommitMode::swap;
};

}  // namespace weightcast
