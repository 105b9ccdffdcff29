#pragma once

#include <array>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "weightcast/core/deadline.hpp"
#include "weightcast/device/memory.hpp"
#include "weightcast/plan/transfer_plan.hpp"

namespace weightcast {

/// When a new version replaces the old one.
enum class CommitMode : std::uint8_t {
  swap,      ///< two slots: the old version serves until the new one is proven, and after a failure
  in_place,  ///< one slot: a failed update leaves the engine dirty until a full update succeeds
};
std::string_view name(CommitMode mode) noexcept;

/// One complete set of weights as an engine rank holds it.
struct HeldVersion {
  std::uint64_t id = 0;
  std::string digest;  ///< of the whole model, 32 hexadecimal digits; empty when it was not verified
};

/// An engine rank's weights: two slots (or one), of which at most one is served. Readers pin what they read; a commit
/// is a flip and never waits for them. Nothing is ever served from a slot that was not published. Thread-safe.
class ParameterStore {
 public:
  /// Allocates and touches the slots; padding is zero. Error(unavailable) when memory is short, saying for what.
  ParameterStore(const TransferPlan& plan, CommitMode mode, Placement placement);

  /// A reader's hold on the served version: its slot is not overwritten while the pin lives.
  class Pin {
   public:
    Pin(Pin&& other) noexcept;
    Pin& operator=(Pin&&) = delete;
    ~Pin();
    const HeldVersion& version() const noexcept;
    Region slot() const noexcept;

   private:
    friend class ParameterStore;
    Pin(ParameterStore* store, std::size_t slot) noexcept : store_(store), slot_(slot) {}
    ParameterStore* store_;
    std::size_t slot_;
  };

  /// Error(busy) when nothing is served: before the first publish(), or dirty (the message says which).
  Pin pin();

  /// Begins a new version: the index of the slot to fill, once nobody pins it. Error(deadline) naming the version that
  /// is still read. With in_place the store is dirty from here until publish().
  std::size_t stage(Deadline deadline);
  /// Serves the staged slot from now on.
  void publish(HeldVersion version);
  /// Forgets what was staged. With swap the served version was never touched; with in_place the store stays dirty.
  void drop() noexcept;

  /// The slots, for a transport to register: two, or one with in_place.
  const std::vector<Region>& slots() const noexcept { return regions_; }
  /// Id of the served version; nothing before the first publish() and while dirty.
  std::optional<std::uint64_t> served() const;
  bool dirty() const;
  CommitMode mode() const noexcept { return mode_; }

 private:
  struct Slot {
    Buffer buffer;
    HeldVersion version;
    std::size_t pins = 0;
  };

  CommitMode mode_;
  std::vector<Slot> slots_;
  std::vector<Region> regions_;
  mutable std::mutex mutex_;
  std::condition_variable unpinned_;
  std::optional<std::size_t> served_, staged_;
  bool dirty_ = false;
};

}  // namespace weightcast
