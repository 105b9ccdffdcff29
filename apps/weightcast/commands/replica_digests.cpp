#include "commands/replica_digests.hpp"

#include <cstring>
#include <span>

#include "weightcast/verify/shard_digests.hpp"

namespace weightcast {

std::vector<Digest> digests_of_replica(const Communicator& replica, const TransferPlan& plan, const std::byte* slot,
                                       Deadline deadline) {
  const auto tp_rank = static_cast<std::size_t>(replica.rank());
  std::vector<Digest> mine(plan.model.parameters.size());
  for (std::size_t p = 0; p < mine.size(); ++p) {
    if (!plan.copy(tp_rank, p)) mine[p] = digest_of_shard(plan, tp_rank, p, slot);
  }
  auto all = replica.gather(std::as_bytes(std::span(mine)), 0, deadline);
  std::vector<Digest> sum(mine.size());
  for (std::size_t i = 0; i * sizeof(Digest) < all.size(); ++i) {
    Digest part;
    std::memcpy(&part, all.data() + i * sizeof part, sizeof part);
    sum[i % sum.size()] += part;
  }
  replica.broadcast(std::as_writable_bytes(std::span(sum)), 0, deadline);
  return sum;
}

}  // namespace weightcast
