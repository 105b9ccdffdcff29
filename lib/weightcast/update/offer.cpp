#include "weightcast/update/offer.hpp"

#include <algorithm>
#include <list>
#include <utility>

#include "weightcast/core/file.hpp"

namespace weightcast {
namespace {

constexpr int tag_note = 1, tag_failure = 2, tag_answer = 3, tag_reason = 4;
constexpr std::string_view stage = "prepare";

template <typename T>
void send(const Communicator& comm, const T& value, int rank, int tag, Deadline deadline) {
  Message::send(comm, bytes_of(value), rank, tag).wait(deadline, "sending a message");
}

/// Receives what is known to be on its way.
template <typename T>
T receive(const Communicator& comm, int rank, int tag, Deadline deadline) {
  T value;
  Message::receive(comm, writable_bytes_of(value), rank, tag).wait(deadline, "receiving a message");
  return value;
}

}  // namespace

Offers::Offers(const Communicator& group, Deadline deadline) : comm_(group.split(0, group.rank(), deadline)) {
  if (group.rank() != 0) return;
  const auto engines = static_cast<std::size_t>(group.size()) - 1;
  outboxes_.resize(engines);
  offered_.resize(engines);
  answered_.resize(engines);
}

Offers::~Offers() {
  // A message that nobody receives would be taken for one of a later group's if the communicator were freed.
  static std::list<std::pair<Communicator, std::vector<Outbox>>> abandoned;
  const bool empty =
      comm_.rank() == 0 ? std::ranges::all_of(outboxes_, [](auto& box) { return box.room() == box.size; }) : closed_;
  if (empty) return;
  abandoned.emplace_back(std::move(comm_), std::move(outboxes_));
}

std::size_t Offers::Outbox::room() {
  return static_cast<std::size_t>(std::ranges::count_if(messages, &Message::done));
}

void Offers::Outbox::send(const Communicator& comm, const Note& note, int rank) {
  const auto slot = static_cast<std::size_t>(std::ranges::find_if(messages, &Message::done) - messages.begin());
  notes.at(slot) = note;
  messages[slot] = Message::send(comm, bytes_of(notes[slot]), rank, tag_note);
}

void Offers::offer(const UpdateClaim& claim, Deadline deadline, FunctionRef<void(Deadline)> local) {
  ++number_;
  const Deadline patience = deadline.plus(-std::min(0.5, 0.1 * deadline.remaining_s()));
  for (std::size_t i = 0; i < outboxes_.size(); ++i) {
    // An engine that has taken nothing for long gets no offer: there would be no room for its withdrawal.
    offered_[i] = outboxes_[i].room() >= 2;
    answered_[i] = false;
    if (offered_[i]) outboxes_[i].send(comm_, {number_, Kind::offer, claim}, static_cast<int>(i) + 1);
  }
  std::vector<Reason> reasons;
  try {
    local(patience);
  } catch (...) {
    reasons.push_back(make_reason(current_error(), stage, 0, host_name()));
  }
  Patience pause(comm_);
  while (std::ranges::count(answered_, true) != static_cast<std::ptrdiff_t>(answered_.size()) && !patience.passed()) {
    if (!take_answers(reasons)) pause.pause();
  }
  std::vector<int> silent;
  for (std::size_t i = 0; i < answered_.size(); ++i) {
    if (!answered_[i]) silent.push_back(static_cast<int>(i) + 1);
  }
  if (!silent.empty()) {
    decide(Kind::withdrawn, nullptr, deadline);
    Error error(ExitCode::busy,
                fmt::format("{} did not answer the offer of version {} in time", name_ranks(silent), claim.version),
                "nothing has changed: publish again when every engine is between requests, or give engines more time "
                "with --timeout");
    error.origin() = {std::string(stage), silent.front(), {}, {}};
    throw error;
  }
  if (reasons.empty()) return decide(Kind::go, nullptr, deadline);
  const auto reason = verdict(std::move(reasons), comm_.size());
  decide(Kind::failed, &reason, deadline);
  throw_reason(reason);
}

bool Offers::take_answers(std::vector<Reason>& reasons) {
  bool any = false;
  for (std::size_t i = 0; i < answered_.size(); ++i) {
    const int rank = static_cast<int>(i) + 1;
    while (message_waits(comm_, rank, tag_answer)) {
      constexpr double on_its_way_s = 1;
      const auto deadline = Deadline::after(on_its_way_s);
      const auto answer = receive<Answer>(comm_, rank, tag_answer, deadline);
      std::optional<Reason> reason;
      if (answer.code != 0) reason = receive<Reason>(comm_, rank, tag_reason, deadline);
      if (answer.number != number_) continue;  // of an offer that was withdrawn since
      answered_[i] = any = true;
      if (reason) reasons.push_back(*reason);
    }
  }
  return any;
}

void Offers::decide(Kind kind, const Reason* reason, Deadline deadline) {
  for (std::size_t i = 0; i < outboxes_.size(); ++i) {
    if (!offered_[i]) continue;
    outboxes_[i].send(comm_, {number_, kind, {}}, static_cast<int>(i) + 1);
    if (reason != nullptr) send(comm_, *reason, static_cast<int>(i) + 1, tag_failure, deadline);
  }
}

void Offers::say_farewell() noexcept {
  try {
    for (std::size_t i = 0; i < outboxes_.size(); ++i) {
      if (outboxes_[i].room() > 0) outboxes_[i].send(comm_, {0, Kind::farewell, {}}, static_cast<int>(i) + 1);
    }
  } catch (const Error&) {  // NOLINT(bugprone-empty-catch): nobody can be told
  }
}

std::optional<Offers::Note> Offers::next_note() {
  if (!message_waits(comm_, 0, tag_note)) return std::nullopt;
  constexpr double on_its_way_s = 1;
  return receive<Note>(comm_, 0, tag_note, Deadline::after(on_its_way_s));
}

void Offers::answer(const Note& offer, const Reason& reason, Deadline deadline) {
  send(comm_, Answer{offer.number, reason.code}, 0, tag_answer, deadline);
  if (reason.code != 0) send(comm_, reason, 0, tag_reason, deadline);
}

std::optional<UpdateClaim> Offers::accept(Deadline wait, double timeout_s,
                                          FunctionRef<void(const UpdateClaim&, Deadline)> local,
                                          FunctionRef<void()> undo, FunctionRef<bool()> give_up) {
  std::optional<Note> offer;  // that was answered and not decided yet
  auto decided_by = wait;
  for (Patience patience(comm_); !closed_; patience.pause()) {
    const auto note = next_note();
    if (!note) {
      if (offer && decided_by.passed()) throw silence(0, stage);
      if (!offer && (wait.passed() || (give_up && give_up()))) {
        throw Error(ExitCode::busy, "the trainer has not begun an update in this time",
                    "call again when you like: nothing is lost");
      }
      continue;
    }
    patience = Patience(comm_);
    switch (note->kind) {
      case Kind::farewell: closed_ = true; break;
      case Kind::offer: {
        if (message_waits(comm_, 0, tag_note)) break;  // it is withdrawn already
        Reason reason;
        decided_by = Deadline::after(timeout_s);
        try {
          local(note->claim, decided_by.plus(-std::min(1.0, 0.2 * timeout_s)));
        } catch (...) {
          reason = make_reason(current_error(), stage, comm_.rank(), host_name());
        }
        answer(*note, reason, decided_by);
        decided_by = Deadline::after(timeout_s);
        offer = note;
        break;
      }
      case Kind::withdrawn:
        if (offer) undo();
        offer.reset();
        break;
      case Kind::failed: throw_reason(receive<Reason>(comm_, 0, tag_failure, Deadline::after(timeout_s)));
      case Kind::go: return offer->claim;
    }
  }
  return std::nullopt;
}

void Offers::leave(Deadline deadline) {
  for (Patience patience(comm_); !closed_ && !deadline.passed(); patience.pause()) {
    const auto note = next_note();
    if (!note) continue;
    if (note->kind == Kind::farewell) closed_ = true;
    if (note->kind == Kind::failed) receive<Reason>(comm_, 0, tag_failure, deadline);
    if (note->kind != Kind::offer) continue;
    const Error left(ExitCode::unavailable, "an engine rank has left the group");
    answer(*note, make_reason(left, stage, comm_.rank(), host_name()), deadline);
  }
}

}  // namespace weightcast
