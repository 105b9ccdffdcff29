#include "weightcast/snapshot/snapshot.hpp"

#include <algorithm>

#include "commands.hpp"
#include "progress.hpp"
#include "weightcast/core/bytes.hpp"
#include "weightcast/core/parallel.hpp"
#include "weightcast/trainer/weight_source.hpp"

namespace weightcast {

CommandSpec snapshot_command() {
  return {
      .name = "snapshot",
      .arguments = "--checkpoint DIR --output FILE.h5",
      .summary = "Writes the HDF5 reference snapshot of a checkpoint (needs memory for the whole model).",
      .options = {{"checkpoint", "DIR", "a checkpoint folder with its config.json"},
                  {"output", "FILE.h5", "the file to write"}},
  };
}

namespace {

constexpr std::uint64_t block_bytes = 16 * mebibyte;

/// Fills the slot of the only rank and returns the digest of every parameter.
std::vector<Digest> load(const TransferPlan& plan, const WeightSource& source, std::span<std::byte> slot) {
  std::vector<Digest> digests(plan.model.parameters.size());
  Progress progress("reading " + source.describe(), plan.model.size_bytes());
  parallel_for(digests.size(), available_cores(), [&](std::size_t i) {
    const Segment& shard = plan.ranks[0].shards[i];  // whole, and contiguous, because tp is 1
    for (std::uint64_t offset = 0; offset < shard.size_bytes(); offset += block_bytes) {
      const auto block = slot.subspan(shard.destination + offset, std::min(block_bytes, shard.size_bytes() - offset));
      source.read(i, offset, block);
      digests[i] += digest_bytes(block, offset);
      progress.add(block.size());
    }
  });
  return digests;
}

}  // namespace

int run_snapshot(const Options& options) {
  options.paths();
  const std::string checkpoint = options.required("checkpoint"), output = options.required("output");
  const TransferPlan plan = make_plan(build_model(load_model_config(checkpoint)), 1, 1);
  const auto source = make_checkpoint_source(plan.model, Checkpoint::open(checkpoint));
  std::vector<std::byte> slot(plan.slot_bytes);
  const SnapshotInfo info{.version = 1, .digests = load(plan, *source, slot)};

  const MpiEnvironment mpi(nullptr, nullptr);  // one rank, for HDF5's sake
  const Deadline deadline = Deadline::after(86400);
  write_snapshot(output, Communicator::duplicate(MPI_COMM_SELF), plan, slot, info, deadline);
  fmt::print("{}: {} parameters, {} ({} bytes), digest {}\n", printable(output), info.digests.size(),
             format_size(plan.model.size_bytes()), plan.model.size_bytes(),
             digest_of_model(plan.model, info.digests).hex());
  return 0;
}

}  // namespace weightcast
