#include "commands/named_weights.hpp"

#include <algorithm>
#include <filesystem>
#include <utility>

#include "output/progress.hpp"
#include "weightcast/core/bytes.hpp"
#include "weightcast/core/parallel.hpp"
#include "weightcast/job/placement.hpp"
#include "weightcast/job/stop.hpp"

namespace weightcast {
namespace {

/// A snapshot, or the end of a chain, as the weights of the model that it was written of.
class SnapshotSource final : public WeightSource {
 public:
  SnapshotSource(const Model& model, Snapshot snapshot) : snapshot_(std::move(snapshot)) {
    const auto match = match_tensors(model, snapshot_.tensors(), snapshot_.path());
    if (match.alias >= 0 || !match.skipped.empty()) {
      fail(ExitCode::bad_data, "{} has tensors that the model has not: {}", snapshot_.path(),
           match.alias >= 0 ? "lm_head.weight" : list_some(match.skipped));
    }
    for (const auto place : match.tensor_index) {
      places_.push_back(static_cast<std::size_t>(place));
      digests_.push_back(snapshot_.claimed_digests()[places_.back()]);
    }
  }

  void read(std::size_t parameter, std::uint64_t offset, std::span<std::byte> destination) const override {
    snapshot_.read(places_[parameter], offset, destination);
  }
  std::string describe() const override { return "snapshot " + snapshot_.path(); }
  std::vector<std::string> notes() const override {
    auto notes = notes_of(snapshot_);
    for (auto& note : notes) note = fmt::format("{}: {}", snapshot_.path(), note);
    return notes;
  }
  std::span<const Digest> claimed_digests() const noexcept override { return digests_; }

 private:
  Snapshot snapshot_;
  std::vector<std::size_t> places_;  // of each parameter
  std::vector<Digest> digests_;
};

}  // namespace

Checkpoint open_checkpoint(const std::string& path) {
  try {
    return Checkpoint::open(path);
  } catch (const Error& error) {
    std::error_code ignored;
    const bool shape = std::ranges::find(named_shapes(), path) != named_shapes().end();
    if ((!shape && !synthetic_seed(path)) || std::filesystem::exists(path, ignored)) throw;
    throw Error(error.code(), error.what(),
                shape ? fmt::format("{0} is a shape, for --model; weightcast synth --model {0} --output FOLDER makes "
                                    "weights of it",
                                    path)
                      : "made-up weights are for update; weightcast synth writes them to a folder");
  }
}

NamedWeights::NamedWeights(std::string spec) : spec_(std::move(spec)) {
  std::error_code unreadable;  // left to open_checkpoint() to report
  if (std::filesystem::is_regular_file(spec_, unreadable) && looks_like_hdf5(spec_)) {
    snapshot_.emplace(Snapshot::open(spec_));
  } else {
    if (!synthetic_seed(spec_)) checkpoint_ = open_checkpoint(spec_);
  }
}

ConfigContext NamedWeights::context(std::vector<std::string>& notes) const {
  if (made_up()) return {.notes = &notes};
  const auto tensors = snapshot_ ? snapshot_->tensors() : checkpoint_->tensors();
  return {dtype_of_weights(tensors), &notes, has_wide_routers(tensors)};
}

ModelConfig NamedWeights::config(std::vector<std::string>& notes) const {
  if (checkpoint_) return config_of(*checkpoint_, notes);
  WEIGHTCAST_EXPECTS(snapshot_.has_value());
  return parse_model_config(snapshot_->config(), fmt::format("the config in {}", snapshot_->path()), context(notes));
}

std::unique_ptr<WeightSource> NamedWeights::source(const Model& model, std::span<const std::string> ignore) && {
  if (snapshot_) return std::make_unique<SnapshotSource>(model, std::move(*snapshot_));
  return make_source(model, spec_, std::move(checkpoint_), ignore);
}

ModelConfig config_of(const NamedWeights& initial, const NamedWeights& target, const std::optional<std::string>& shape,
                      std::vector<std::string>& notes) {
  const NamedWeights& named = target.made_up() ? initial : target;
  if (!shape) return named.config(notes);
  return named.made_up() ? load_model_config(*shape) : load_model_config(*shape, named.context(notes));
}

void check_claims(const Job& job, const Model& model, std::initializer_list<const WeightSource*> sources) {
  const auto threads = threads_per_rank(job.world(), job.deadline());
  const auto rank = static_cast<std::size_t>(job.world().rank()), ranks = static_cast<std::size_t>(job.world().size());
  job.agree_patiently("load", model.size_bytes() * sources.size(), [&](const Pulse& pulse) {
    const auto look = [&] {
      stop_if_asked();
      pulse.check();
    };
    for (const auto* source : sources) {
      const auto claimed = source->claimed_digests();
      if (claimed.empty()) continue;
      Progress progress("checking " + source->describe(), model.size_bytes() / ranks);
      const std::size_t mine = (claimed.size() + ranks - 1 - rank) / ranks;  // every one of `ranks`
      parallel_for(mine, threads, [&](std::size_t i) {
        const auto parameter = rank + i * ranks;
        if (model.parameters[parameter].row > 0) return;  // the digest is the tensor's, and its first looks at it
        const auto& info = model.parameters[parameter].info;
        const auto digest = digest_read(info.size_bytes().value(), [&](std::uint64_t offset, std::span<std::byte> to) {
          source->read(parameter, offset, to);
          look();
          progress.add(to.size());
        });
        if (digest == claimed[parameter]) return;
        throw Error(ExitCode::mismatch,
                    fmt::format("{}: {} has the digest {}, but the file says {}", source->describe(),
                                printable(info.name), digest.hex(), claimed[parameter].hex()),
                    "the file, or one that it builds on, was damaged: write it again");
      });
    }
  });
}

std::vector<std::string> notes_of(const Snapshot& snapshot) {
  const auto* delta = snapshot.delta();
  if (delta == nullptr) return {};
  const auto& chain = snapshot.chain();
  return {fmt::format("a delta against {}: {} elements of {} parameters; {} in the chain, down to {}", chain[1],
                      delta->changed_elements(), delta->changed_parameters(),
                      chain.size() == 2 ? "one delta" : fmt::format("{} deltas", chain.size() - 1), chain.back())};
}

}  // namespace weightcast
