#include "weightcast/engine/tp_worker.hpp"

#include <algorithm>
#include <cstring>
#include <exception>
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
}

}  // namespace

/// One read on the first rank: its turn, and its pin.
struct TpWorker::Reading {
  Reading(TpWorker& worker, std::string_view verb) : turn(worker.reading_), pin(take(worker, verb)) {}
  ParameterStore::Pin take(TpWorker& worker, std::string_view verb) {
    if (!worker.lost_.empty()) fail(ExitCode::unavailable, "reads are not possible any more: {}", worker.lost_);
    Stopwatch watch;
    auto held = worker.runner_->store().pin(fmt::format("{} request {}", verb, worker.requests_ + 1));
    waited_s = watch.elapsed_s();
    return held;
  }
  std::scoped_lock<FairMutex> turn;
  double waited_s = 0;
  ParameterStore::Pin pin;
};

void TpWorker::connect(UpdateGroup& group, Driver driver) {
  group_ = &group;
  driver_ = driver;
  requests_ = 0;
  lost_.clear();
  control_.reset();
  read_.reset();
  if (group.replica().size() == 1 || driver == Driver::every_rank) return;
  agree(group.replica(), "init", deadline(), [&](Deadline work) {
    control_.emplace(group.replica(), work);
    read_.emplace(group.replica(), work);
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
  const auto digests = runner_->digests(pin, command.first, command.count, deadline());
  const auto bytes = std::as_bytes(std::span(digests));
  return {bytes.begin(), bytes.end()};
}

std::unique_ptr<TpWorker::Reading> TpWorker::begin_reading(std::string_view verb) {
  if (driver_ == Driver::first_rank) return std::make_unique<Reading>(*this, verb);
  std::unique_ptr<Reading> reading;
  agree(group_->replica(), "read", deadline(), [&] { reading = std::make_unique<Reading>(*this, verb); });
  return reading;
}

std::vector<std::vector<std::byte>> TpWorker::gather(TpCommand command, Reading& reading) {
  command.request = ++requests_;
  command.version = reading.pin.version().id;
  std::vector<std::vector<std::byte>> parts(plan_->tp);
  if (driver_ == Driver::every_rank) {
    std::vector<std::byte> mine;
    agree(group_->replica(), "read", deadline(), [&] { mine = part(command, reading.pin); });
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
    if (read_) read_->send(command, deadline());
    try {
      parts[0] = part(command, reading.pin);
    } catch (...) {
      failure = current_error();  // the others' answers must be taken in any case
    }
    for (int rank = 1; rank < static_cast<int>(plan_->tp); ++rank) {
      const auto reply = read_->collect(rank, parts[static_cast<std::size_t>(rank)], patience);
      reading.waited_s = std::max(reading.waited_s, reply.waited_s);
      if (reply.code != 0 && !failure)
        failure.emplace(static_cast<ExitCode>(reply.code), fmt::format("tp rank {}: {}", rank, reply.message.data()));
    }
  } catch (const Error& error) {
    lost_ = error.what();
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
    rows = std::min(rows, row_count(rule.info));
    const auto columns = *rule.info.elements() / std::max<std::uint64_t>(row_count(rule.info), 1);
    const auto width = element_bytes(rule.info.dtype);
    const auto held = begin_reading("get_weights");
    auto& reading = *held;
    const auto parts = gather({.verb = TpCommand::Verb::rows, .first = parameter, .count = rows}, reading);
    WeightRows result{reading.pin.version().id, std::vector<float>(rows * columns), reading.waited_s};
    for (std::size_t t = 0; t < plan_->tp; ++t) {
      if (plan_->copy(t, parameter)) continue;
      const auto slice = first_rows(shard_of(rule, plan_->tp, t), rows);
      for (std::uint64_t i = 0; i < slice.rows * slice.columns; ++i) {
        const auto value = to_float(rule.info.dtype, parts[t].data() + i * width);
        result.values[(slice.row + i / slice.columns) * columns + slice.column + i % slice.columns] = *value;
      }
    }
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
    const auto held = begin_reading("probe");
    auto& reading = *held;
    Digest digest;
    if (parameters.empty()) {
      std::vector<Digest> sums(model.parameters.size());
      add_digests(sums, 0, reading);
      digest = digest_of_model(model, sums);
    } else {
      std::vector<Digest> sums(parameters.size());
      std::vector<TensorInfo> infos;
      for (std::size_t i = 0; i < parameters.size(); ++i) {
        add_digests(std::span(sums).subspan(i, 1), parameters[i], reading);
        infos.push_back(model.parameters[parameters[i]].info);
      }
      digest = digest_of_set(infos, sums);
    }
    return Probe{reading.pin.version().id, digest, reading.waited_s};
  });
}

void TpWorker::release() {
  if (!control_) return;
  const std::scoped_lock turn(reading_);
  control_->send({.verb = TpCommand::Verb::shutdown}, deadline());
  read_->send({.verb = TpCommand::Verb::shutdown}, deadline());
}

void TpWorker::serve() {
  std::exception_ptr failure;
  std::jthread reader([&](const std::stop_token& stop) {
    try {
      serve_reads(stop);
    } catch (...) {
      failure = std::current_exception();
    }
  });
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
  if (failure) std::rethrow_exception(failure);
}

void TpWorker::serve_reads(const std::stop_token& stop) {
  while (const auto command = read_->next(stop)) {
    if (command->verb == TpCommand::Verb::shutdown) return;
    read_times.timed([&] {
      TpReply reply{.request = command->request};
      std::vector<std::byte> bytes;
      try {
        Stopwatch watch;
        const auto pin =
            runner_->store().pin(command->version, pin_deadline(), fmt::format("request {}", command->request));
        reply.waited_s = watch.elapsed_s();
        bytes = part(*command, pin);
      } catch (...) {
        store_error(reply, current_error());
      }
      read_->reply(reply, bytes, deadline());
    });
  }
}

}  // namespace weightcast
