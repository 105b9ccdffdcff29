#include <memory>

#include "weightcast/capi/handle.hpp"
#include "weightcast/core/bytes.hpp"
#include "weightcast/telemetry/stopwatch.hpp"
#include "weightcast/trainer/trainer.hpp"

using namespace weightcast;

struct wc_trainer {
  explicit wc_trainer(const wc_options* options)
      : member(options, true), trainer(member.plan, member.group.placement, member.trainer_rank()) {
    agree(member.comm, "start", member.long_deadline(), [&] { weights = trainer.reserve(); });
    trainer.init_parameter_update_group(member.comm, member.group, 0);
  }

  /// What a trainer rank does before something is sent: all of them, or none, so that nobody waits for the others.
  void prepare(FunctionRef<void()> body) {
    if (member.trainer_ranks.size() == 1) return body();
    agree(member.trainer_ranks, "fill", member.long_deadline(), body);
  }
  std::span<const Piece> pieces() const { return member.plan.sources.ranks[member.trainer_rank()].pieces; }
  void expect_next(std::uint64_t version) const {
    if (open != 0) fail(ExitCode::busy, "version {} is open: version {} must wait", open, version);
    if (version <= published)
      fail(ExitCode::config, "version {} does not come after version {}, which was published", version, published);
  }
  void publish(std::uint64_t version, double local_s, wc_update* update) {
    const auto result = trainer.update_weights(weights, version);
    published = version;
    write_update(update, result, local_s);
  }

  Membership member;
  Trainer trainer;
  std::size_t weights = 0;
  std::uint64_t published = 0, open = 0;  // versions; 0: none
  std::vector<std::string> given;         // of the open version, by piece: the name it came under, or empty
  double put_s = 0;
  std::optional<Error> lost;
};

namespace {

void expect_complete(const wc_trainer& trainer) {
  std::vector<std::string> missing;
  for (std::size_t i = 0; i < trainer.given.size(); ++i) {
    const auto& [parameter, slice, offset, pitch] = trainer.pieces()[i];
    if (trainer.given[i].empty())
      missing.push_back(label_of(trainer.member.plan.model.parameters[parameter].info, slice));
  }
  if (missing.empty()) return;
  throw Error(ExitCode::bad_data, fmt::format("version {} lacks parameters:\n  {}", trainer.open, list_lines(missing)),
              "wc_put() each of them, then commit");
}

/// Puts a tensor that must be all that this trainer rank has of a parameter, whose name it returns.
std::string put_all_of(wc_trainer& trainer, const TrainingTensor& tensor) {
  const auto& plan = trainer.member.plan;
  const auto index = plan.model.find(tensor.info.name);
  if (index < 0) fail(ExitCode::bad_data, "the model has no parameter {}", printable(tensor.info.name));
  const auto parameter = static_cast<std::size_t>(index);
  const auto& name = plan.model.parameters[parameter].info.name;
  const auto count = plan.sources.ranks[trainer.member.trainer_rank()].pieces_of(parameter).size();
  if (count > 1) {
    throw Error(ExitCode::config, fmt::format("this trainer rank has {} pieces of {}", count, name),
                "wc_put() each of them");
  }
  const auto piece = trainer.trainer.put(trainer.weights, tensor, trainer.member.long_deadline());
  if (count == 1 && !piece) fail(ExitCode::bad_data, "{}, but this trainer rank has a piece of it", describe(tensor));
  return name;
}

}  // namespace

int wc_trainer_create(const wc_options* options, wc_trainer** trainer) {
  return guarded([&] {
    expect_argument(trainer, "trainer");
    *trainer = std::make_unique<wc_trainer>(options).release();
  });
}

int wc_publish(wc_trainer* trainer, uint64_t version, const wc_tensor* tensors, size_t count, wc_update* update) {
  return guarded(trainer, [&] {
    const Stopwatch watch;
    trainer->prepare([&] {
      expect_update(update);
      trainer->expect_next(version);
      std::vector<TrainingTensor> table;
      for (const auto& tensor : read_table(tensors, count)) table.push_back(training_tensor(tensor));
      trainer->trainer.fill(trainer->weights, table, trainer->member.long_deadline());
    });
    trainer->publish(version, watch.elapsed_s(), update);
  });
}

int wc_update_parameter(wc_trainer* trainer, uint64_t version, const wc_tensor* tensor, int empty_cache,
                        wc_update* update) {
  return guarded(trainer, [&] {
    const Stopwatch watch;
    std::string name;
    trainer->prepare([&] {
      expect_argument(tensor, "tensor");
      expect_update(update);
      trainer->expect_next(version);
      name = put_all_of(*trainer, training_tensor(read_tensor(*tensor)));
    });
    const auto local_s = watch.elapsed_s();
    auto result = trainer->trainer.update_parameter(trainer->weights, version, name, empty_cache != 0);
    if (result.committed) trainer->published = version;
    result.version = trainer->published;
    write_update(update, result, local_s);
  });
}

int wc_begin(wc_trainer* trainer, uint64_t version) {
  return guarded(trainer, [&] {
    trainer->expect_next(version);
    trainer->given.assign(trainer->pieces().size(), {});
    trainer->put_s = 0;
    trainer->open = version;
  });
}

int wc_put(wc_trainer* trainer, const wc_tensor* tensor) {
  return guarded(trainer, [&] {
    expect_argument(tensor, "tensor");
    if (trainer->open == 0) fail(ExitCode::config, "wc_put() before wc_begin()");
    const Stopwatch watch;
    const auto given = training_tensor(read_tensor(*tensor));
    const auto deadline = trainer->member.long_deadline();
    const auto piece = piece_of(trainer->member.plan, trainer->member.trainer_rank(), given);
    if (!piece) return;
    auto& held = trainer->given[*piece];
    if (!held.empty() && held != given.info.name) {  // two names that are tied
      trainer->trainer.expect_held(trainer->weights, given, held, deadline);
    } else {
      trainer->trainer.put(trainer->weights, given, deadline);
      held = given.info.name;
    }
    trainer->put_s += watch.elapsed_s();
  });
}

int wc_commit(wc_trainer* trainer, wc_update* update) {
  return guarded(trainer, [&] {
    trainer->prepare([&] {
      expect_update(update);
      if (trainer->open == 0) fail(ExitCode::config, "wc_commit() before wc_begin()");
      expect_complete(*trainer);
    });
    trainer->publish(trainer->open, trainer->put_s, update);
    trainer->open = 0;
  });
}

int wc_abort(wc_trainer* trainer) {
  return guarded(trainer, [&] { trainer->open = 0; });
}

int wc_trainer_lost(const wc_trainer* trainer) {
  return trainer != nullptr && trainer->lost ? 1 : 0;
}

void wc_trainer_destroy(wc_trainer* trainer) {
  delete trainer;
}
