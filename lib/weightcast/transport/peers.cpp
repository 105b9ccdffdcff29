#include <array>
#include <cstring>

#include "weightcast/core/file.hpp"
#include "weightcast/transport/transport.hpp"

namespace weightcast {

Peers Peers::meet(const Communicator& group, const Roster& roster, Placement placement, Deadline deadline) {
  struct Told {
    Placement placement;
    std::array<char, 32> pci_bus_id{};
  } mine{placement, {}};
  agree(group, "prepare", deadline, [&] {
    if (placement.kind == MemoryKind::cuda)
      gpu::properties(placement.gpu).pci_bus_id.copy(mine.pci_bus_id.data(), mine.pci_bus_id.size() - 1);
  });
  const auto hosts = group.all_gather(host_name(), deadline);
  const auto told = group.all_gather({reinterpret_cast<const char*>(&mine), sizeof mine}, deadline);
  Peers peers{&group, roster};
  for (std::size_t rank = 0; rank < hosts.size(); ++rank) {
    Told theirs;
    std::memcpy(&theirs, told[rank].data(), sizeof theirs);
    peers.places.push_back({theirs.placement, hosts[rank], theirs.pci_bus_id.data()});
  }
  return peers;
}

}  // namespace weightcast
