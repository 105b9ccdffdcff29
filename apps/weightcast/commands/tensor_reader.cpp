#include "commands/tensor_reader.hpp"

#include <algorithm>
#include <filesystem>
#include <numeric>
#include <utility>

#include "commands/named_weights.hpp"

namespace weightcast {
namespace {

std::string why_as_stored(const Error& error) {
  const std::string text = error.what();
  return "seen as stored: " + text.substr(0, text.find('\n'));
}

}  // namespace

TensorReader::TensorReader(const std::string& path, std::vector<std::string> ignore)
    : path_(path), ignore_(std::move(ignore)) {
  std::error_code unreadable;  // left to open_checkpoint() to report
  if (std::filesystem::is_regular_file(path, unreadable) && looks_like_hdf5(path)) {
    snapshot_.emplace(Snapshot::open(path));
    tensors_.assign(snapshot_->tensors().begin(), snapshot_->tensors().end());
    notes_ = notes_of(*snapshot_);
    return;
  }
  checkpoint_.emplace(open_checkpoint(path));
  notes_ = checkpoint_->notes();
  std::vector<std::string> notes;
  std::optional<ModelConfig> config;
  try {
    config = config_of(*checkpoint_, notes);
  } catch (const Error& error) {
    if (error.code() != ExitCode::no_input) notes_.push_back(why_as_stored(error));
  }
  notes_.insert(notes_.end(), notes.begin(), notes.end());
  if (config) match(*config);
  if (!source_) see_as_stored();
}

void TensorReader::match_with(const Model& model) {
  std::error_code ignored;
  if (!checkpoint_ || std::filesystem::exists(checkpoint_->folder() + "/config.json", ignored)) return;
  match(model.config);
}

/// Gives source_, or, when the checkpoint does not fit, a note.
void TensorReader::match(const ModelConfig& config) {
  try {
    model_ = tensors_of(build_model(config));
    source_ = std::make_unique<CheckpointSource>(model_, std::move(*checkpoint_), ignore_);
  } catch (const Error& error) {
    if (error.code() == ExitCode::usage) throw;
    notes_.push_back(why_as_stored(error));
    checkpoint_.emplace(Checkpoint::open(path_));
    return;
  }
  checkpoint_.reset();
  notes_.insert(notes_.end(), source_->match().notes.begin(), source_->match().notes.end());
  places_.resize(model_.parameters.size());
  std::iota(places_.begin(), places_.end(), std::size_t{0});
  std::sort(places_.begin(), places_.end(), [&](std::size_t a, std::size_t b) {
    return model_.parameters[a].info.name < model_.parameters[b].info.name;
  });
  tensors_.clear();
  for (const auto place : places_) tensors_.push_back(model_.parameters[place].info);
}

void TensorReader::see_as_stored() {
  const auto tensors = checkpoint_->tensors();
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    if (is_ignored(tensors[i].name, ignore_)) continue;
    tensors_.push_back(tensors[i]);
    places_.push_back(i);
  }
}

DType TensorReader::stored_dtype(std::size_t index) const {
  if (!source_) return tensors_[index].dtype;
  return source_->checkpoint().tensors()[static_cast<std::size_t>(source_->match().tensor_index[places_[index]])].dtype;
}

std::span<const Digest> TensorReader::claimed_digests() const noexcept {
  return snapshot_ ? snapshot_->claimed_digests() : std::span<const Digest>();
}

std::uint64_t TensorReader::size_bytes() const {
  std::uint64_t bytes = 0;
  for (const TensorInfo& tensor : tensors()) bytes += tensor.size_bytes().value();
  return bytes;
}

void TensorReader::read(std::size_t index, std::uint64_t offset, std::span<std::byte> destination) const {
  if (source_) return source_->read(places_[index], offset, destination);
  read_stored(index, offset, destination);
}

void TensorReader::read_stored(std::size_t index, std::uint64_t offset, std::span<std::byte> destination) const {
  if (snapshot_) return snapshot_->read(index, offset, destination);
  if (!source_) return checkpoint_->read(places_[index], offset, destination);
  const auto tensor = static_cast<std::size_t>(source_->match().tensor_index[places_[index]]);
  source_->checkpoint().read(tensor, offset, destination);
}

}  // namespace weightcast
