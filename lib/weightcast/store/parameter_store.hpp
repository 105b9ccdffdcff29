#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <list>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "weightcast/core/deadline.hpp"
#include "weightcast/core/digest.hpp"
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
  std::optional<Digest> digest;  ///< of the whole model; nothing when it was not verified
};

/// An engine rank's weights: two slots (or one), of which at most one is served. Readers pin what they read; a commit
/// is a flip and never waits for them. Nothing is ever served from a slot that was not published. Thread-safe.
///
/// One request may read on several ranks: the first rank pins the served version, the others pin *that* version. Why
/// they find it: a slot is overwritten only after every rank has reserved its own, and the first rank's reservation
/// waits for the request's pin. A reserved slot keeps its version until overwrite(), so that a rank which has reserved
/// early can still take part in such a request; all of them have let go when the first rank does.
class ParameterStore {
 public:
  /// Allocates and touches the slots; padding is zero. Error(unavailable) when memory is short, saying for what.
  ParameterStore(const TransferPlan& plan, CommitMode mode, Placement placement);

  /// A reader's hold on a version: its slot is not overwritten while the pin lives.
  class Pin {
   public:
    Pin(Pin&& other) noexcept;
    Pin& operator=(Pin&&) = delete;
    ~Pin();
    const HeldVersion& version() const noexcept;
    Region slot() const noexcept;

   private:
    friend class ParameterStore;
    using Holder = std::list<std::string>::iterator;
    Pin(ParameterStore* store, std::size_t slot, Holder holder) noexcept
        : store_(store), slot_(slot), holder_(holder) {}
    ParameterStore* store_;
    std::size_t slot_;
    Holder holder_;
  };

  /// Pins what is served. `holder` is who will be named when an update waits for it: "probe request 17". Error(busy)
  /// when nothing is served: before the first publish(), or dirty (the message says which).
  Pin pin(std::string holder = "a reader");
  /// Pins that version, served or not, once a slot holds it: waits, because commits happen at slightly different
  /// moments on different ranks. Error(deadline) saying what is held instead.
  Pin pin(std::uint64_t version, Deadline deadline, std::string holder = "a reader");

  /// Begins a new version: the index of the slot to fill, once nobody pins it. Error(deadline) naming the version that
  /// is still read, and its readers. The slot keeps what it holds until overwrite(). With in_place nothing more is
  /// served from here until publish(), or drop() of a slot that was not overwritten.
  std::size_t reserve(Deadline deadline);
  /// The reserved slot is about to be overwritten: what it held can be pinned and rolled back to no longer.
  void overwrite() noexcept;
  /// reserve() and overwrite(), for a rank that is alone.
  std::size_t stage(Deadline deadline);
  /// Serves the reserved slot from now on. Error(internal) when there is none.
  void publish(const HeldVersion& version);
  /// Gives the reserved slot back. With swap the served version was never touched; with in_place the store is dirty if
  /// its slot was to be overwritten, until a publish().
  void drop() noexcept;

  /// drop() of a slot that was overwritten and holds the served version again, bit for bit: with in_place that is
  /// served.
  void restore(const HeldVersion& version) noexcept;

  /// The slot that holds `version`, served or spare, or nothing.
  std::optional<std::size_t> slot_of(std::uint64_t version) const;
  /// The version that a slot holds, if any.
  std::optional<HeldVersion> held(std::size_t slot) const;
  /// Serves a version that is still held, from now on. Error(internal) when no slot holds it, or one is reserved.
  void roll_back(std::uint64_t version);

  /// The slots, for a transport to register: two, or one with in_place.
  const std::vector<Region>& slots() const noexcept { return regions_; }
  /// By which other processes map the slots. Only with a plan for dp > 1: then later replicas pull from them.
  std::vector<ShareHandle> share() const;
  /// Id of the served version; nothing before the first publish() and while dirty.
  std::optional<std::uint64_t> served() const;
  bool dirty() const;
  CommitMode mode() const noexcept { return mode_; }

 private:
  struct Slot {
    Buffer buffer;
    std::optional<HeldVersion> version;  // nothing: never published, or overwritten since
    std::list<std::string> holders;      // of pins
  };
  Pin pin_slot(std::size_t slot, std::string holder);
  std::optional<std::size_t> find(std::uint64_t version) const noexcept;

  CommitMode mode_;
  std::vector<Slot> slots_;
  std::vector<Region> regions_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;  // a pin is gone, or another version is here
  std::optional<std::size_t> served_, reserved_;
  bool dirty_ = false;
};

}  // namespace weightcast
