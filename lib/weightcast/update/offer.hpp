#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "weightcast/comm/message.hpp"
#include "weightcast/comm/reason.hpp"
#include "weightcast/update/manifest.hpp"

namespace weightcast {

/// How a call on the update group begins, and how the group ends. The trainer offers; an engine answers when it is
/// between requests; only when all have answered does anything collective begin. An engine that does not answer in time
/// makes the offer end, and nothing else: slow is not dead.
///
/// Point to point over a communicator of its own. Offers are numbered, so that an answer that comes too late is known
/// for what it is, and an engine that has slept through an offer finds it withdrawn. Allocates nothing after it is
/// made.
class Offers {
 public:
  /// Collective over `group`.
  Offers(const Communicator& group, Deadline deadline);
  /// Local. Leaves behind what others may still send to a rank that has not heard the farewell.
  ~Offers();
  Offers(Offers&&) = delete;

  // Trainer.
  /// Offers `claim` and runs `local` while engines run theirs. Returns when all ranks go on together; throws on all of
  /// them what failed on any, as agree() does. Error(busy), on the trainer alone, naming the engines that did not
  /// answer by `deadline`: then the offer is withdrawn, and the group is as it was before.
  void offer(const UpdateClaim& claim, Deadline deadline, FunctionRef<void(Deadline)> local);
  /// Tells the engines that there will be no other offer. Does not wait for them.
  void say_farewell() noexcept;

  // Engines.
  /// Waits until `wait` for an offer that all ranks go on with, and returns it; nothing when the trainer has said
  /// farewell. For each offer `local` runs, once and with a deadline of `timeout_s`; its failure is thrown on all
  /// ranks; `undo` runs when the offer was withdrawn after it. Error(busy) when there was no such offer, also when
  /// `give_up` (may be empty) says so. Error(deadline) of Reach::lost when the trainer does not go on with what it
  /// offered.
  std::optional<UpdateClaim> accept(Deadline wait, double timeout_s,
                                    FunctionRef<void(const UpdateClaim&, Deadline)> local, FunctionRef<void()> undo,
                                    FunctionRef<bool()> give_up);
  /// Answers what the trainer offers with a refusal, until its farewell or `deadline`.
  void leave(Deadline deadline);
  /// Whether the trainer has said farewell.
  bool closed() const noexcept { return closed_; }

 private:
  enum class Kind : std::int32_t { offer, go, withdrawn, failed, farewell };
  /// To an engine.
  struct Note {
    std::uint64_t number = 0;
    Kind kind = Kind::offer;
    UpdateClaim claim;
  };
  /// To the trainer.
  struct Answer {
    std::uint64_t number = 0;
    std::int32_t code = 0;  ///< ExitCode; a Reason follows unless it is ok
  };
  /// Messages to one engine that it may not have taken yet.
  struct Outbox {
    static constexpr std::size_t size = 4;
    std::array<Note, size> notes;
    std::array<Message, size> messages;
    /// How many more it holds.
    std::size_t room();
    void send(const Communicator& comm, const Note& note, int rank);
  };

  /// Sends what was decided of the last offer to the engines that have it.
  void decide(Kind kind, const Reason* reason, Deadline deadline);
  /// Takes the answers that are there; returns whether there were any.
  bool take_answers(std::vector<Reason>& reasons);
  /// The next note, or nothing when it is not there.
  std::optional<Note> next_note();
  void answer(const Note& offer, const Reason& reason, Deadline deadline);

  Communicator comm_;
  std::uint64_t number_ = 0;
  std::vector<Outbox> outboxes_;          // trainer, by rank - 1
  std::vector<bool> offered_, answered_;  // by rank - 1: of the last offer
  bool closed_ = false;
};

}  // namespace weightcast
