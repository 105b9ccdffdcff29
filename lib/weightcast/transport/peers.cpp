#include <algorithm>
#include <cstdlib>

#include "weightcast/core/file.hpp"
#include "weightcast/transport/transport.hpp"

namespace weightcast {

Peers Peers::meet(const Communicator& group, std::uint64_t tp, std::uint64_t dp, Placement placement,
                  Deadline deadline) {
  const auto hosts = group.all_gather(host_name(), deadline);
  std::string gpu;
  agree(group, "prepare", deadline, [&] {
    if (placement.kind != MemoryKind::cuda) return;
    const char* const host_id = std::getenv("NCCL_HOSTID");
    gpu = fmt::format("{} {}", host_id != nullptr ? host_id : host_name(), gpu::properties(placement.gpu).pci_bus_id);
  });
  return {&group,
          tp,
          dp,
          placement,
          std::all_of(hosts.begin(), hosts.end(), [&](const std::string& host) { return host == hosts[0]; }),
          group.all_gather(gpu, deadline)};
}

}  // namespace weightcast
