#include <fmt/ranges.h>

#include <algorithm>
#include <array>

#include "weightcast/core/bytes.hpp"
#include "weightcast/core/file.hpp"
#include "weightcast/transport/bound_transport.hpp"

// The only file that knows all transports.
namespace weightcast {
namespace {

struct Entry {
  std::string_view name;
  Method method;
  MemoryKind memory;
  std::unique_ptr<Transport> (*make)();
};

/// In the order that `auto` tries them.
constexpr Entry entries[] = {
    {"direct", Method::sharded, MemoryKind::host, make_direct_host},
    {"direct", Method::sharded, MemoryKind::cuda, make_direct_gpu},
    {"nccl", Method::sharded, MemoryKind::cuda, make_nccl_sharded},
    {"nccl", Method::broadcast, MemoryKind::cuda, make_nccl_broadcast},
    {"mpi", Method::sharded, MemoryKind::host, make_mpi_sharded},
    {"mpi", Method::broadcast, MemoryKind::host, make_mpi_broadcast},
};

/// What a rank tells of itself, but for its host's name.
struct Told {
  Placement placement;
  std::array<char, 32> pci_bus_id{};
};

}  // namespace

Peers Peers::meet(const Communicator& group, const Roster& roster, Placement placement, Deadline deadline) {
  Told mine{placement, {}};
  agree(group, "prepare", deadline, [&] {
    if (placement.kind == MemoryKind::cuda)
      gpu::properties(placement.gpu).pci_bus_id.copy(mine.pci_bus_id.data(), mine.pci_bus_id.size() - 1);
  });
  const auto hosts = group.all_gather(host_name(), deadline);
  const auto told = group.all_gather_values(std::span<const Told>(&mine, 1), deadline);
  Peers peers{&group, roster};
  for (std::size_t rank = 0; rank < hosts.size(); ++rank) {
    const auto& theirs = told[rank].at(0);
    peers.places.push_back({theirs.placement, hosts[rank], theirs.pci_bus_id.data()});
  }
  return peers;
}

std::string_view name(Method method) noexcept {
  return method == Method::sharded ? "sharded" : "broadcast";
}

std::vector<std::string_view> transport_names() {
  std::vector<std::string_view> names;
  for (const auto& entry : entries) {
    if (names.empty() || names.back() != entry.name) names.push_back(entry.name);
  }
  return names;
}

std::unique_ptr<Transport> make_transport(std::string_view name, Method method, MemoryKind memory) {
  bool named = false, has_method = false;
  for (const auto& entry : entries) {
    if (entry.name != name) continue;
    named = true;
    if (entry.method != method) continue;
    has_method = true;
    if (entry.memory == memory) return entry.make();
  }
  if (!named) {
    throw Error(ExitCode::usage, fmt::format("unknown transport '{}'", printable(name)),
                fmt::format("there are: {}", fmt::join(transport_names(), ", ")));
  }
  if (!has_method) {
    fail(ExitCode::config, "transport {} has no method {}: engines pull what they need", name,
         weightcast::name(method));
  }
  throw Error(ExitCode::config,
              BoundTransport::why_not(memory == MemoryKind::host ? MemoryKind::cuda : MemoryKind::host));
}

Survey survey_transport(std::string_view name, Method method, const Peers& peers, Deadline deadline,
                        const TransportFactory& make) {
  Survey survey;
  std::string reason;
  try {
    survey.transport = make(name, method, peers.memory());
    for (int other = 0; other < peers.group->size() && reason.empty(); ++other) {
      const auto [low, high] = std::minmax({peers.rank(), other});  // by value
      if (low != high) reason = survey.transport->probe(peers, low, high).value_or("");
    }
  } catch (const Error& error) {
    reason = error.what();
  }
  const auto all = peers.group->all_gather(reason, deadline);
  for (auto each = all.begin(); each != all.end(); ++each) {
    if (!each->empty() && std::find(all.begin(), each, *each) == each)
      survey.reasons.push_back(fmt::format("rank {}: {}", each - all.begin(), *each));
  }
  return survey;
}

}  // namespace weightcast
