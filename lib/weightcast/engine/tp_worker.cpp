#include "weightcast/engine/tp_worker.hpp"

#include <algorithm>
#include <cstring>
#include <exception>
#include <numeric>
#include <thread>

namespace weightcast {
namespace {

constexpr double forever_s = 1e9;

std::uint64_t row_count(const TensorInfo& info) {
  return info.shape.empty() ? 1 : info.shape[0];
}

void store_error(TpReply& reply, const Error& error) {
  reply.code = static_cast<std::int64_t>(error.code());
  const std::string_view text = error.what();
  std::copy_n(text.begin(), std::min(text.size(), reply.message.size() - 1), reply.message.begin());
  std::copy_n(error.hint().begin(), std::min(error.hint().size(), reply.hint.size() - 1), reply.hint.begin());
}

}  // namespace

/// One read or scrub on the first rank: its turn, and its pin.
struct TpWorker::Reading {
  Reading(TpWorker& worker, Line& its_line, std::string_view verb)
      : line(its_line), turn(line.turn), pin(take(worker, verb)) {}
  ParameterStore::Pin take(TpWorker& worker, std::string_view verb) {
    if (!line.lost.empty()) fail(ExitCode::unavailable, "{}s are not possible any more: {}", line.stage, line.lost);
    Stopwatch watch;
    auto held = worker.runner_->store().pin(fmt::format("{} request {}", verb, line.requests + 1));
    waited_s = watch.elapsed_s();
    return held;
  }
  Line& line;
  std::scoped_lock<FairMutex> turn;
  double waited_s = 0;
  ParameterStore::Pin pin;
};

void TpWorker::Line::open(const Communicator* replica, Deadline deadline) {
  requests = 0;
  lost.clear();
  channel.reset();
  if (replica != nullptr) channel.emplace(*replica, deadline);
}

void TpWorker::connect(UpdateGroup& group, Driver driver) {
  group_ = &group;
  driver_ = driver;
  control_.reset();
  reads_.open(nullptr, deadline());
  scrubs_.open(nullptr, deadline());
  if (group.replica().size() == 1 || driver == Driver::every_rank) return;
  agree(group.replica(), "init", deadline(), [&](Deadline work) {
    control_.emplace(group.replica(), work);
    reads_.open(&group.replica(), work);
    if (group.options().scrub) scrubs_.open(&group.replica(), work);
  });
}

std::optional<UpdateResult> TpWorker::update(UpdateWait wait, bool empty_cache, CheckClaim check) {
  return times.timed([&] {
    if (control_) control_->send({.verb = TpCommand::Verb::update, .empty_cache = empty_cache}, deadline());
    return runner_->update(*group_, wait, empty_cache, check);
  });
}

std::vector<std::byte> TpWorker::part(const TpCommand& command, const ParameterStore::Pin& pin) {
  if (command.verb == TpCommand::Verb::rows) return runner_->rows(pin, command.first, command.count);
  if (command.verb == TpCommand::Verb::scrub)
    return {static_cast<std::byte>(runner_->scrub(*group_, pin, deadline()) ? 1 : 0)};
  const auto digests = runner_->digests(pin, command.first, command.count, deadline());
  const auto bytes = std::as_bytes(std::span(digests));
  return {bytes.begin(), bytes.end()};
}

std::unique_ptr<TpWorker::Reading> TpWorker::begin_reading(Line& line, std::string_view verb) {
  if (driver_ == Driver::first_rank) return std::make_unique<Reading>(*this, line, verb);
  std::unique_ptr<Reading> reading;
  agree(group_->replica(), line.stage, deadline(), [&] { reading = std::make_unique<Reading>(*this, line, verb); });
  return reading;
}

std::vector<std::vector<std::byte>> TpWorker::gather(TpCommand command, Reading& reading) {
  auto& line = reading.line;
  const auto placed = [&](Error error, int tp_rank) {
    if (error.origin().rank < 0) {
      error.origin().stage = line.stage;
      error.origin().rank = group_->group().rank() - group_->replica().rank() + tp_rank;
    }
    return error;
  };
  command.request = ++line.requests;
  command.version = reading.pin.version().id;
  std::vector<std::vector<std::byte>> parts(plan_->tp);
  if (driver_ == Driver::every_rank) {
    std::vector<std::byte> mine;
    agree(group_->replica(), line.stage, deadline(), [&] {
      try {
        mine = part(command, reading.pin);
      } catch (...) {
        throw placed(current_error(), group_->replica().rank());
      }
    });
    const std::string_view bytes(reinterpret_cast<const char*>(mine.data()), mine.size());
    const auto all = group_->replica().all_gather(bytes, deadline());
    for (std::size_t t = 0; t < parts.size(); ++t) {
      const auto theirs = std::as_bytes(std::span(all[t]));
      parts[t].assign(theirs.begin(), theirs.end());
    }
    return parts;
  }
  const auto patience = deadline();
  std::optional<Error> failure;
  try {
    if (line.channel) line.channel->send(command, deadline());
    try {
      parts[0] = part(command, reading.pin);
    } catch (...) {
      failure.emplace(placed(current_error(), 0));  // the others' answers must be taken in any case
    }
    for (int rank = 1; line.channel && rank < static_cast<int>(plan_->tp); ++rank) {
      const auto reply = line.channel->collect(rank, parts[static_cast<std::size_t>(rank)], patience);
      reading.waited_s = std::max(reading.waited_s, reply.waited_s);
      if (reply.code != 0 && !failure)
        failure.emplace(placed({static_cast<ExitCode>(reply.code),
                                fmt::format("tp rank {}: {}", rank, reply.message.data()), reply.hint.data()},
                               rank));
    }
  } catch (const Error& error) {
    line.lost = error.what();
    throw;
  }
  if (failure) throw *failure;
  return parts;
}

WeightRows TpWorker::rows(std::size_t parameter, std::uint64_t rows) {
  return read_times.timed([&] {
    const auto& rule = plan_->model.parameters[parameter];
    if (constexpr std::uint64_t zero = 0; !to_float(rule.info.dtype, &zero))
      fail(ExitCode::bad_data, "{} is {}: its values cannot be shown as floats", rule.info.name, rule.info.describe());
    // Rows are the caller's, of the first dimension; matrix rows are those of shards.
    const auto [all_rows, columns] = matrix_of(rule.info);
    const auto inner = all_rows / std::max<std::uint64_t>(row_count(rule.info), 1);
    const auto matrix_rows = std::min(rows, row_count(rule.info)) * inner;
    const auto width = element_bytes(rule.info.dtype);
    const auto held = begin_reading(reads_, "get_weights");
    auto& reading = *held;
    WeightRows result{reading.pin.version().id, std::vector<float>(matrix_rows * columns), 0};
    const auto end = plan_->model.tensor_end(parameter);
    for (auto p = parameter; p < end && plan_->model.parameters[p].row < matrix_rows; ++p) {
      const auto parts = gather({.verb = TpCommand::Verb::rows, .first = p, .count = matrix_rows}, reading);
      for (std::size_t t = 0; t < plan_->tp; ++t) {
        if (plan_->copy(t, p)) continue;
        const auto slice = first_rows(shard_of(plan_->model.parameters[p], plan_->tp, t), matrix_rows);
        for (std::uint64_t i = 0; i < slice.rows * slice.columns; ++i) {
          const auto value = to_float(rule.info.dtype, parts[t].data() + i * width);
          result.values[(slice.row + i / slice.columns) * columns + slice.column + i % slice.columns] = *value;
        }
      }
    }
    result.waited_s = reading.waited_s;
    return result;
  });
}

void TpWorker::add_digests(std::span<Digest> sums, std::size_t first, Reading& reading) {
  for (const auto& part : gather({.verb = TpCommand::Verb::digests, .first = first, .count = sums.size()}, reading)) {
    for (std::size_t i = 0; i < sums.size(); ++i) {
      Digest shard;
      std::memcpy(&shard, part.data() + i * sizeof shard, sizeof shard);
      sums[i] += shard;
    }
  }
}

Probe TpWorker::probe(std::span<const std::size_t> parameters) {
  return read_times.timed([&] {
    const auto& model = plan_->model;
    const auto held = begin_reading(reads_, "probe");
    auto& reading = *held;
    Digest digest;
    if (parameters.empty()) {
      std::vector<Digest> sums(model.parameters.size());
      add_digests(sums, 0, reading);
      digest = digest_of_model(model, sums);
    } else {
      std::vector<Digest> sums;
      std::vector<TensorInfo> infos;
      for (const auto first : parameters) {
        std::vector<Digest> parts(model.tensor_end(first) - first);
        add_digests(parts, first, reading);
        infos.push_back(model.parameters[first].info);
        sums.push_back(std::accumulate(parts.begin(), parts.end(), Digest(),
                                       [](Digest sum, const Digest& part) { return sum += part; }));
      }
      digest = digest_of_set(infos, sums);
    }
    return Probe{reading.pin.version().id, digest, reading.waited_s};
  });
}

Scrub TpWorker::scrub() {
  return scrub_times.timed([&] {
    const auto held = begin_reading(scrubs_, "scrub");
    const auto parts = gather({.verb = TpCommand::Verb::scrub}, *held);
    return Scrub{held->pin.version().id,
                 std::ranges::all_of(parts, [](const auto& part) { return part.at(0) != std::byte{0}; })};
  });
}

void TpWorker::release() {
  if (!control_) return;
  control_->send({.verb = TpCommand::Verb::shutdown}, deadline());
  for (auto* line : {&reads_, &scrubs_}) {
    const std::scoped_lock turn(line->turn);
    if (line->channel) line->channel->send({.verb = TpCommand::Verb::shutdown}, deadline());
  }
}

void TpWorker::serve() {
  std::exception_ptr failure, scrub_failure;
  const auto serve_beside = [&](const Line& line, LayerTimes& line_times, std::exception_ptr& its_failure) {
    return std::jthread([this, &line, &line_times, &its_failure](const std::stop_token& stop) {
      try {
        serve_line(line, line_times, stop);
      } catch (...) {
        its_failure = std::current_exception();
      }
    });
  };
  auto reader = serve_beside(reads_, read_times, failure);
  std::jthread scrubber;
  if (scrubs_.channel) scrubber = serve_beside(scrubs_, scrub_times, scrub_failure);
  for (TpCommand command; (command = *control_->next({})).verb != TpCommand::Verb::shutdown;) {
    try {
      // Until the first rank wants something else: then it has given up on this update, or taken part in it before.
      const auto wanted = [&] { return control_->arrived(Deadline::after(0)); };
      const UpdateWait wait{Deadline::after(forever_s), wanted};
      times.timed([&] { return runner_->update(*group_, wait, command.empty_cache != 0, {}); });
    } catch (const Error& error) {
      if (error.reach() != Error::Reach::everybody && error.code() != ExitCode::busy) throw;
    }
  }
  reader.join();
  if (scrubber.joinable()) scrubber.join();
  if (failure || scrub_failure) std::rethrow_exception(failure ? failure : scrub_failure);
}

void TpWorker::serve_line(const Line& line, LayerTimes& line_times, const std::stop_token& stop) {
  while (const auto command = line.channel->next(stop)) {
    if (command->verb == TpCommand::Verb::shutdown) return;
    line_times.timed([&] {
      TpReply reply{.request = command->request};
      std::vector<std::byte> bytes;
      try {
        Stopwatch watch;
        const auto pin = runner_->store().pin(command->version, pin_deadline(),
                                              fmt::format("{} request {}", line.stage, command->request));
        reply.waited_s = watch.elapsed_s();
        bytes = part(*command, pin);
      } catch (...) {
        store_error(reply, current_error());
      }
      line.channel->reply(reply, bytes, deadline());
    });
  }
}

}  // namespace weightcast
