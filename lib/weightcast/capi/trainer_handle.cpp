#include <memory>

#include "weightcast/capi/handle.hpp"
#include "weightcast/core/bytes.hpp"
#include "weightcast/model/scale_rules.hpp"
#include "weightcast/telemetry/stopwatch.hpp"
#include "weightcast/trainer/trainer.hpp"

using namespace weightcast;

struct wc_trainer {
  explicit wc_trainer(const wc_options* options)
      : member(options, true), trainer(member.plan, member.group.placement, member.trainer_rank()) {
    const auto& model = member.plan.model;
    for (std::size_t p = 0; p < scales.size(); ++p) {
      if (const auto index = scales_parameter(model, p)) scales[*index] = true;
    }
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
  // By parameter: whether it is a matrix's scales, and those that were made since they were sent last.
  std::vector<bool> scales = std::vector<bool>(member.plan.model.parameters.size()), made = scales;
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

/// A matrix that is rounded makes its scales, and nobody else does, within a version.
void expect_no_other_scales(const wc_trainer& trainer, const TrainingTensor& tensor, const PieceMatch& match) {
  const auto& model = trainer.member.plan.model;
  for (std::size_t i = 0; i < match.tensor_index.size(); ++i) {
    const auto& held = trainer.given[i];
    if (match.tensor_index[i] < 0 || held.empty() || held == tensor.info.name) continue;
    const auto& [parameter, slice, offset, pitch] = trainer.pieces()[i];
    const auto& info = model.parameters[parameter].info;
    if (model.find(held) == model.find(tensor.info.name)) continue;  // tied
    throw Error(ExitCode::bad_data, fmt::format("{} was put as {} already", label_of(info, slice), held),
                "a matrix that is rounded makes its own scales: leave them out, or give the matrix in F8_E4M3");
  }
}

std::size_t parameter_of(const wc_trainer& trainer, const TensorInfo& info) {
  const auto index = trainer.member.plan.model.find(info.name);
  if (index < 0) fail(ExitCode::bad_data, "the model has no parameter {}", printable(info.name));
  return static_cast<std::size_t>(index);
}

/// Puts a tensor that must be all that this trainer rank has of a parameter.
void put_all_of(wc_trainer& trainer, std::size_t parameter, const TrainingTensor& tensor) {
  const auto& plan = trainer.member.plan;
  const auto& name = plan.model.parameters[parameter].info.name;
  const auto& region = plan.sources.ranks[trainer.member.trainer_rank()];
  std::size_t count = 0;  // at most, of a part of the tensor
  for (auto p = parameter; p < plan.model.tensor_end(parameter); ++p)
    count = std::max(count, region.pieces_of(p).size());
  if (count > 1) {
    throw Error(ExitCode::config, fmt::format("this trainer rank has {} pieces of {}", count, name),
                "wc_put() each of them");
  }
  const auto piece = trainer.trainer.put(trainer.weights, tensor, trainer.member.long_deadline());
  if (count == 1 && !piece) fail(ExitCode::bad_data, "{}, but this trainer rank has a piece of it", describe(tensor));
  const auto scales = scales_parameter(plan.model, parameter);
  if (scales) trainer.made[*scales] = wide_of(tensor.info.dtype).has_value();
}

/// Of scales without data: that their matrix has made them since they were sent last.
void expect_made(const wc_trainer& trainer, std::size_t parameter) {
  if (trainer.made[parameter]) return;
  throw Error(ExitCode::bad_data,
              fmt::format("{} has no data", trainer.member.plan.model.parameters[parameter].info.name),
              "scales are sent without data after their matrix, when that was given in F32, BF16 or F16");
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
    std::size_t parameter = 0;
    trainer->prepare([&] {
      expect_argument(tensor, "tensor");
      expect_update(update);
      trainer->expect_next(version);
      const auto described = read_table(tensor, 1, Memory::not_looked_at).front().info;
      parameter = parameter_of(*trainer, described);
      if (trainer->scales[parameter] && tensor->data == nullptr && described.elements() != 0U)
        return expect_made(*trainer, parameter);
      put_all_of(*trainer, parameter, training_tensor(read_tensor(*tensor)));
    });
    const auto local_s = watch.elapsed_s();
    const auto& name = trainer->member.plan.model.parameters[parameter].info.name;
    auto result = trainer->trainer.update_parameter(trainer->weights, version, name, empty_cache != 0);
    trainer->made[parameter] = false;
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
    const auto match = match_piece(trainer->member.plan, trainer->member.trainer_rank(), given);
    const auto first = std::ranges::find(match.tensor_index, 0);
    if (first == match.tensor_index.end()) return;
    expect_no_other_scales(*trainer, given, match);
    const auto& held = trainer->given[static_cast<std::size_t>(first - match.tensor_index.begin())];
    if (!held.empty() && held != given.info.name) {  // two names that are tied
      trainer->trainer.expect_held(trainer->weights, given, held, deadline);
    } else {
      trainer->trainer.put(trainer->weights, given, deadline);
      for (std::size_t i = 0; i < match.tensor_index.size(); ++i) {
        if (match.tensor_index[i] == 0) trainer->given[i] = given.info.name;
      }
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
