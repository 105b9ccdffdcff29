#pragma once

#include <cstddef>
#include <span>

#include "weightcast/comm/communicator.hpp"
#include "weightcast/core/function_ref.hpp"
#include "weightcast/plan/transfer_plan.hpp"
#include "weightcast/snapshot/hdf5_handle.hpp"

/// Parameters that are cut along columns: written as they are held they would be millions of runs of a few KiB. Their
/// rows are put together in memory, some at a time, on the ranks in turn. Internal to snapshot.
namespace weightcast {

/// True when the shards of this parameter are less wide than its rows.
bool cut_in_columns(const TransferPlan& plan, std::size_t parameter);

/// Writes all such parameters into `file`. Collective over `replica` (rank = tp rank); staging memory at most 32 MiB
/// per rank, or twice the longest row. `between` is called now and then and may throw. On failure every rank throws the
/// same error.
void write_column_shards(hid_t file, const Communicator& replica, const TransferPlan& plan,
                         std::span<const std::byte> slot, Deadline deadline, FunctionRef<void()> between);

}  // namespace weightcast
