#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "weightcast/delta/delta_receiver.hpp"
#include "weightcast/store/parameter_store.hpp"
#include "weightcast/transport/transport.hpp"

namespace weightcast {

/// Deltas of an engine rank: from the served version to the next one, in the spare slot or, where there is one slot, in
/// place. The digests that it is given and gives are by parameter, of shards; empty ones are not looked at (no proof).
class SlotDelta : private GpuObserver {
 public:
  /// What became of the digests of a slot.
  struct Applied {
    bool whole = false;  ///< all of it was digested; else this is what was added to those of the base
    std::span<const Digest> digests;
  };

  /// All must outlive it. Memory is allocated here only.
  SlotDelta(const DeltaPlan& plan, ParameterStore& store, std::size_t tp_rank, Placement placement,
            std::size_t parameter_count, bool shared, bool digests);

  const Endpoints& endpoints() const noexcept { return endpoints_; }
  /// The inbox that the next delta arrives in: the same on all engine ranks.
  std::size_t inbox_index() const noexcept { return inbox_index_; }

  /// Two slots: begins to make the next version in the reserved one, whose bytes are `held` (a version, or nothing that
  /// is known), before so many parts arrive: brings it to the served version, or, on a GPU, leaves that to who applies
  /// what arrives.
  void begin(std::size_t slot, const std::optional<std::uint64_t>& held, std::size_t parts);
  /// Lets what was begun follow the movement of the parts, where it can.
  void watch(Batch& batch) noexcept;
  /// One slot: looks at what has arrived, so many parts, while readers go on. What does not fit apply() says.
  void check(std::size_t parts, Deadline deadline);
  /// Two slots: what bringing it to the base added to the digests of the slot; nothing where it was copied. Error
  /// (mismatch) when what was kept for it is damaged.
  std::span<const Digest> finish_base(Deadline deadline);
  /// Writes what has arrived in the inbox to the slot, as far as that was not done while it did. Error(mismatch) when
  /// it does not fit: then nothing was written to a slot that is served.
  Applied apply(std::size_t slot, std::size_t parts, Deadline deadline);
  /// Waits for what was begun, when nothing shall come of it.
  void drop(Deadline deadline) noexcept;
  /// It is served now.
  void commit(std::uint64_t base, std::uint64_t version);
  /// One slot: takes back what apply() has written, if it has. Whether the slot holds its old bits.
  bool undo(std::size_t slot, Deadline deadline) noexcept;

 private:
  void landed(const gpu::Stream& stream, const Part& part) noexcept override;

  /// A delta that made what is served, while the spare slot holds its base.
  struct Kept {
    std::uint64_t base = 0, version = 0;
    std::size_t inbox_index = 0, parts = 0;
  };
  ParameterStore* store_;
  std::unique_ptr<DeltaReceiver> receiver_;
  Endpoints endpoints_;
  std::size_t inbox_index_ = 0;
  std::size_t parts_ = 0;     // of the delta in the inbox
  bool applied_ = false;      // to the only slot
  bool from_kept_ = false;    // the base is under way
  bool following_ = false;    // what is moved is applied as it arrives
  bool whole_ = false;        // and all of the slot is made and digested with it
  bool fits_ = true;          // what check() says
  std::optional<Kept> kept_;  // two slots
};

}  // namespace weightcast
