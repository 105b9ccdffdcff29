#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "weightcast/comm/communicator.hpp"
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

/// Who takes part: the update group, and this rank's place in it.
struct Peers {
  const Communicator* group = nullptr;  ///< rank 0 is the trainer, engine rank e = 1 + replica * tp + tp_rank
  std::uint64_t tp = 1, dp = 1;
  Placement placement = {};  ///< of this rank's weights; the kind is the same on all ranks
  bool one_host = true;      ///< all ranks are on the same host
  /// The GPU of each rank as NCCL tells GPUs apart: host (or NCCL_HOSTID) and PCI bus id; empty texts on the host.
  std::vector<std::string> gpus = {};

  /// Learns from the others what each must know of them. Collective over `group`, which must outlive the result.
  static Peers meet(const Communicator& group, std::uint64_t tp, std::uint64_t dp, Placement placement,
                    Deadline deadline);

  bool trainer() const noexcept { return group->rank() == 0; }
  std::size_t tp_rank() const noexcept { return (static_cast<std::size_t>(group->rank()) - 1) % tp; }
  std::size_t replica() const noexcept { return (static_cast<std::size_t>(group->rank()) - 1) / tp; }
  static int engine_rank(std::uint64_t replica, std::uint64_t tp_rank, std::uint64_t tp) noexcept {
    return static_cast<int>(1 + replica * tp + tp_rank);
  }
};

/// Memory that a transport may use from attach() on; it must outlive the transport. On the trainer `sources`, one for
/// each version that it holds, every one laid out by plan.source_offsets; on an engine `sinks`, its slots.
struct Endpoints {
  std::vector<const Buffer*> sources;
  std::vector<Region> sinks;
  std::vector<ShareHandle> shared_sinks = {};  ///< with dp > 1: by which the next replica maps the sinks
};

/// Sees the bytes while they are moved. No verb may throw or block.
class Witness {
 public:
  virtual ~Witness() = default;
  /// Engine, host memory: bytes [first, first + size_bytes) of the packed shard of `parameter` are readable in the
  /// sink. A shard is packed row by row; a strided one lands in whole rows. Each byte is announced once, while it is
  /// still in cache.
  virtual void landed(std::size_t parameter, std::uint64_t first, std::uint64_t size_bytes) noexcept = 0;
  /// Engine, device memory: the shards of parameters [first, first + count) are in the sink as soon as what `stream`
  /// has been given so far is done.
  virtual void landed_on(const gpu::Stream& stream, std::size_t first, std::size_t count) noexcept = 0;
  /// Engine whose GPU also holds the trainer's source, at `source`: queues on `stream` the copies of these shards into
  /// the sink and sees them on the way, which saves reading them again. False when it cannot: then the transport moves
  /// them and calls landed_on().
  virtual bool copy_on(gpu::Stream& /*stream*/, const std::byte* /*source*/, std::size_t /*first*/,
                       std::size_t /*count*/) noexcept {
    return false;
  }
  /// Trainer: does one bounded piece of work while there is nothing to move; false when none is left.
  virtual bool work() noexcept = 0;
};

/// One movement: a range of parameters, from one of the trainer's sources into the same sink of every engine.
struct Batch {
  std::size_t source = 0, sink = 0;  ///< indices into Endpoints
  std::size_t first_parameter = 0, parameters = 0;
  Witness* witness = nullptr;  ///< or nullptr
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
  /// Why this rank cannot take part with these peers, or nothing. Local, cheap, no side effects.
  virtual std::optional<std::string> probe(const Peers& peers) const = 0;
  /// Registers memory and sets up what run() needs; all that can be allocated is allocated here. Collective over the
  /// group; once, before the first run(). `peers`, `plan` and `endpoints` must outlive this object. May throw on one
  /// rank only: the caller agrees on the outcome.
  virtual void attach(const Peers& peers, const TransferPlan& plan, const Endpoints& endpoints, Deadline deadline) = 0;
  /// Moves one batch. Collective; returns when this rank's bytes are readable in its sink, or, on the trainer, when its
  /// part is done (engines may still be reading its source until the caller's next agreement). May throw on one rank
  /// only: the others then meet their deadline, or finish. The touched bytes of the sink are then unspecified, and the
  /// object is not run again; it is kept as long as the endpoints, because what is still under way may land in its
  /// buffers. Allocates nothing, but for what release_cache() gave back.
  virtual void run(const Batch& batch, Deadline deadline) = 0;
  virtual Traffic traffic() const noexcept = 0;
  /// Gives back what is only kept for speed (staging, pack buffers); the next run() allocates it again. Local.
  virtual void release_cache() noexcept {}
};

/// The names that make_transport() takes, in the order that `auto` tries them.
std::vector<std::string_view> transport_names();

/// A transport of that name for weights in that kind of memory. Error(usage) listing the names; Error(config) when
/// method or build rule it out.
std::unique_ptr<Transport> make_transport(std::string_view name, Method method, MemoryKind memory);
using TransportFactory = std::function<std::unique_ptr<Transport>(std::string_view, Method, MemoryKind)>;

}  // namespace weightcast
