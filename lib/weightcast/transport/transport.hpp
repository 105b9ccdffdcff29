#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "weightcast/comm/communicator.hpp"
#include "weightcast/core/function_ref.hpp"
#include "weightcast/device/memory.hpp"
#include "weightcast/plan/transfer_plan.hpp"

/// The seam between what is moved and how: three verbs. A transport moves the planned segments from the trainer's
/// weights into the engines' slots; it knows nothing of files, names, versions or digests.
namespace weightcast {

enum class Method : std::uint8_t {
  sharded,    ///< each rank gets exactly its bytes
  broadcast,  ///< the seed's: the full parameter to everybody, sliced on arrival
};
std::string_view name(Method method) noexcept;

/// Where one rank keeps its weights, as all ranks know it.
struct Place {
  Placement placement = {};
  std::string host;        ///< of a name that no other host has
  std::string pci_bus_id;  ///< of its GPU; empty on the host
};
/// Whether both keep their weights on one GPU.
inline bool same_gpu(const Place& a, const Place& b) noexcept {
  return !a.pci_bus_id.empty() && a.pci_bus_id == b.pci_bus_id && a.host == b.host;
}

/// Who takes part: the update group, and this rank's place in it.
struct Peers {
  const Communicator* group = nullptr;  ///< its ranks are those of the roster
  Roster roster;
  std::vector<Place> places = {};  ///< by rank

  /// Learns from the others what each must know of them. Collective over `group`, which must outlive the result.
  static Peers meet(const Communicator& group, const Roster& roster, Placement placement, Deadline deadline);

  int rank() const noexcept { return group->rank(); }
  const Place& place(int rank) const { return places.at(static_cast<std::size_t>(rank)); }
  Placement placement() const { return place(rank()).placement; }
  /// Where the engines keep their slots: all in one kind of memory, or no transport serves them.
  MemoryKind memory() const { return place(roster.engine_rank(0, 0)).placement.kind; }
  bool trainer() const noexcept { return roster.trainer(rank()); }
  std::size_t tp_rank() const noexcept { return roster.tp_rank(rank()); }
  std::size_t replica() const noexcept { return roster.replica(rank()); }
};

/// Memory that a transport may use from attach() on; it must outlive the transport. On a trainer rank `sources`, one
/// for each version that it holds (as many on each), every one laid out by the plan's source layout; on an engine
/// `sinks`, its slots.
struct Endpoints {
  std::vector<const Buffer*> sources;
  std::vector<Region> sinks;
  /// By which others map the sinks: with dp > 1 the next replica, on GPUs whoever sends to them, too.
  std::vector<ShareHandle> shared_sinks = {};
};

/// Engine, host memory: sees what arrives. May neither throw nor block.
class Observer {
 public:
  virtual ~Observer() = default;
  /// This part of a shard is readable in the sink. Each byte is announced once, while it is still in cache.
  virtual void landed(const Shard& block) noexcept = 0;
};

/// Engine, device memory: the same. May neither throw nor block.
class GpuObserver {
 public:
  virtual ~GpuObserver() = default;
  /// The segments of this part are in the sink as soon as what `stream` has been given so far is done. Each segment is
  /// announced once.
  virtual void landed(const gpu::Stream& stream, const Part& part) noexcept = 0;
};

/// One movement: a range of parameters, from one source of every trainer rank into the same sink of every engine.
struct Batch {
  std::size_t source_index = 0, sink_index = 0;  ///< in Endpoints
  Range parameters;
  // On engines, each or none:
  Observer* observer = nullptr;
  GpuObserver* gpu_observer = nullptr;
  /// Where a copy within the GPU may leave the digests of what it writes, by segment. Those are not announced then.
  const gpu::DigestTarget* digests = nullptr;
  /// On trainer ranks, or empty: does one bounded piece of work while there is nothing to move; false when none is
  /// left.
  FunctionRef<bool()> idle = {};
};

/// What this rank did in the last run().
struct Traffic {
  std::uint64_t egress_bytes = 0;   ///< payload that left this rank's memory for others
  std::uint64_t staging_bytes = 0;  ///< size of the buffers between source and sink
};

/// Whatever travels by MPI does so over a communicator of the transport's own: after a failure a new transport takes
/// over, and no late message is mistaken for one of its.
class Transport {
 public:
  virtual ~Transport() = default;
  virtual std::string_view name() const noexcept = 0;
  /// Why these two ranks cannot be served together, or nothing. Local, cheap, no side effects.
  virtual std::optional<std::string> probe(const Peers& peers, int rank, int other) const = 0;
  /// Registers memory and sets up what run() needs; all that can be allocated is allocated here. Collective over the
  /// group; once, before the first run(). `peers`, `plan` and `endpoints` must outlive this object. May throw on one
  /// rank only: the caller agrees on the outcome.
  virtual void attach(const Peers& peers, const TransferPlan& plan, const Endpoints& endpoints, Deadline deadline) = 0;
  /// Moves one batch. Collective; returns when this rank's bytes are readable in its sink, or, on a trainer rank, when
  /// its part is done (engines may still be reading its source until the caller's next agreement). May throw on one
  /// rank only: the others then meet their deadline, or finish. The touched bytes of the sink are then unspecified, and
  /// the object is not run again; it is kept as long as the endpoints, because what is still under way may land in its
  /// buffers. Allocates nothing, but for what release_cache() gave back.
  virtual void run(const Batch& batch, Deadline deadline) = 0;
  virtual Traffic traffic() const noexcept = 0;
  /// Gives back what is only kept for speed (staging, pack buffers); the next run() allocates it again. Local.
  virtual void release_cache() noexcept {}
};

/// The names that make_transport() takes, in the order that `auto` tries them.
std::vector<std::string_view> transport_names();

/// A transport of that name for engines with that kind of memory. Error(usage) listing the names; Error(config) when
/// method, memory or build rule it out.
std::unique_ptr<Transport> make_transport(std::string_view name, Method method, MemoryKind memory);
using TransportFactory = std::function<std::unique_ptr<Transport>(std::string_view, Method, MemoryKind)>;

/// A transport held against all pairs of ranks.
struct Survey {
  std::unique_ptr<Transport> transport;  ///< not attached; nothing when this rank cannot have it
  /// Why it cannot be used, the same on all ranks: each reason once, with the lowest rank that gives it.
  std::vector<std::string> reasons;
};
/// Whether these peers can use that transport, of those that `make` makes. Collective.
Survey survey_transport(std::string_view name, Method method, const Peers& peers, Deadline deadline,
                        const TransportFactory& make = make_transport);

}  // namespace weightcast
