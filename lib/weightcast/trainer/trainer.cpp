#include "weightcast/trainer/trainer.hpp"

#include <algorithm>

#include "weightcast/core/bytes.hpp"
#include "weightcast/core/parallel.hpp"
#include "weightcast/plan/chunks.hpp"
#include "weightcast/telemetry/stopwatch.hpp"
#include "weightcast/trainer/generate_source.hpp"

namespace weightcast {

std::unique_ptr<Trainer::Source> Trainer::make_source(const std::string& purpose) const {
  if (group_)
    fail(ExitCode::config, "weights must be there before the update group is formed: their memory is registered then");
  return std::make_unique<Source>(
      Source{Buffer::allocate(placement_, plan_->source_bytes(trainer_rank_), true, purpose),
             SourceClaim(*plan_, trainer_rank_)});
}

std::size_t Trainer::load(const WeightSource& source, std::size_t threads,
                          const std::function<void(std::uint64_t)>& progress) {
  auto added = make_source(fmt::format("the trainer's copy of {}", source.describe()));
  const auto region = added->buffer.region();
  if (region.kind == MemoryKind::cuda && !source.generators().empty()) {
    generate_source(*plan_, trainer_rank_, source.generators(), region, added->claimed, progress);
  } else {
    read_source(source, region, added->claimed, threads, progress);
  }
  for (std::size_t p = 0; p < plan_->model.parameters.size(); ++p) added->claimed.complete(p);
  sources_.push_back(std::move(added));
  return sources_.size() - 1;
}

void Trainer::read_source(const WeightSource& source, const Region& region, SourceClaim& claim, std::size_t threads,
                          const std::function<void(std::uint64_t)>& progress) const {
  constexpr std::uint64_t block_bytes = 4 * mebibyte;
  const bool on_host = region.kind == MemoryKind::host;
  const auto blocks = chunks_held(*plan_, trainer_rank_, block_bytes);
  std::uint64_t longest = 0;
  for (const auto& block : blocks) longest = std::max(longest, block.size_bytes);
  const auto bring = [&](const Staging& staging, std::size_t index) {
    const auto& [speaker, at, size_bytes, rows] = blocks[index];
    const auto block = on_host ? region.bytes().subspan(at, size_bytes) : staging.first(size_bytes);
    read_slice(source, plan_->model, rows.parameter_index, rows.slice, block);
    claim.add(blocks[index], block.data());
    if (!on_host) write_region(region, at, block);
    if (progress) progress(size_bytes);
  };
  parallel_for(
      blocks.size(), threads, [&] { return Staging(region, on_host ? 0 : longest); }, bring);
}

std::size_t Trainer::reserve() {
  sources_.push_back(make_source("the weights to send"));
  return sources_.size() - 1;
}

Trainer::Source& Trainer::to_fill(std::size_t source_index) {
  if (source_index >= sources_.size())
    fail(ExitCode::config, "there is no version {} to fill: there are {}", source_index, sources_.size());
  return *sources_[source_index];
}

void Trainer::fill(std::size_t source_index, std::span<const TrainingTensor> tensors, Deadline deadline) {
  auto& source = to_fill(source_index);
  const auto ticket = admission_.enter(any_version);  // not while it is sent
  source.clean = false;
  fill_.run(tensors, source.buffer.region(), source.claimed, source.changes, deadline);
}

std::optional<std::size_t> Trainer::put(std::size_t source_index, const TrainingTensor& tensor, Deadline deadline) {
  auto& source = to_fill(source_index);
  const auto ticket = admission_.enter(any_version);
  source.clean = false;
  return fill_.put(tensor, source.buffer.region(), source.claimed, source.changes, deadline);
}

void Trainer::expect_held(std::size_t source_index, const TrainingTensor& tensor, std::string_view other,
                          Deadline deadline) {
  const auto ticket = admission_.enter(any_version);
  fill_.expect_held(tensor, other, to_fill(source_index).buffer.region(), deadline);
}

void Trainer::init_parameter_update_group(const Communicator& parent, const GroupOptions& options,
                                          std::uint64_t served_version) {
  if (sources_.empty())
    throw Error(ExitCode::config, "init_parameter_update_group() before load() or reserve()",
                "the memory of the weights must be there first");
  const auto ticket = admission_.enter(served_version);
  WEIGHTCAST_EXPECTS(parent.rank() == static_cast<int>(trainer_rank_));
  for (auto& source : sources_) {
    if (options.delta_limit > 0) source->changes = SourceChanges(placement_, source->buffer.region().size_bytes);
  }
  group_ = std::make_unique<UpdateGroup>(parent, *plan_, options, buffers(), nullptr);
  served_version_ = served_version;
}

std::vector<const Buffer*> Trainer::buffers() const {
  std::vector<const Buffer*> result;
  for (const auto& source : sources_) result.push_back(&source->buffer);
  return result;
}

std::uint64_t Trainer::delta_bytes() const {
  auto bytes = group().delta_bytes();
  for (const auto& source : sources_) bytes += source->changes.memory_bytes();
  return bytes;
}

UpdateGroup& Trainer::group() const {
  if (!group_) throw Error(ExitCode::config, "there is no update group yet", "call init_parameter_update_group first");
  return *group_;
}

UpdateResult Trainer::update_weights(std::size_t source_index, std::uint64_t version) {
  return update(source_index, version, 0, plan_->model.parameters.size());
}

UpdateResult Trainer::update_parameter(std::size_t source_index, std::uint64_t version, std::string_view name,
                                       bool empty_cache) {
  const auto index = plan_->model.find(name);
  if (index < 0) fail(ExitCode::usage, "the model has no parameter {}", printable(name));
  const auto first = static_cast<std::size_t>(index);
  const auto result = update(source_index, version, first, plan_->model.tensor_end(first) - first);
  if (empty_cache) group().release_cache();
  return result;
}

UpdateResult Trainer::rollback(std::uint64_t version) {
  const auto ticket = admission_.enter(version);
  const auto result = group().roll_back(served_version_, version);
  served_version_ = version;
  return result;
}

UpdateResult Trainer::update(std::size_t source_index, std::uint64_t version, std::size_t first, std::size_t count) {
  if (source_index >= sources_.size())
    throw Error(ExitCode::config,
                fmt::format("weights {} were never loaded: there are {}", source_index, sources_.size()),
                "load them before the update group is formed");
  const auto ticket = admission_.enter(version);
  auto& source = *sources_[source_index];
  const bool whole = count == plan_->model.parameters.size();
  const Stopwatch watch;
  const auto* const changes = whole && group().options().delta_limit > 0 ? changes_of(source) : nullptr;
  const auto marking_s = watch.elapsed_s();
  auto result = group().publish({served_version_, version, source_index, &source.claimed, first, count, changes});
  if (result.payload == Payload::delta) result.diff_s += marking_s;
  if (!result.committed) return result;
  served_version_ = version;
  if (group().options().delta_limit > 0) {
    if (whole) source.changes.begin(version);
    if (!whole) source.changes.forget();
    source.clean = whole;
  }
  return result;
}

const SourceChanges* Trainer::changes_of(Source& source) {
  // What was written past fill() is in no mark; then there is no claim either.
  if (!source.claimed.knows_all()) return nullptr;
  if (source.changes.since() == served_version_) return &source.changes;
  const auto base = std::ranges::find_if(sources_, [&](const auto& other) {
    return other.get() != &source && other->clean && other->changes.since() == served_version_;
  });
  if (base == sources_.end()) return nullptr;
  source.changes.begin(served_version_, (*base)->buffer.region(), source.buffer.region());
  return &source.changes;
}

}  // namespace weightcast
