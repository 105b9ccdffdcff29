#pragma once

#include <cstring>
#include <string>
#include <vector>

#include "harness/folder_test.hpp"
#include "harness/model_bytes.hpp"
#include "weightcast/snapshot/snapshot.hpp"

/// Versions of a model of any parameters, written as a snapshot and deltas against it.
namespace weightcast::harness {

using Weights = std::vector<std::vector<std::byte>>;  // of each parameter

/// `tiny`'s config, but these parameters.
inline Model model_of(std::vector<TensorInfo> tensors) {
  Model model{load_model_config("tiny"), {}};
  for (TensorInfo& tensor : tensors) {
    ParameterRule rule;
    rule.info = std::move(tensor);
    rule.rows = matrix_of(rule.info).rows;
    model.parameters.push_back(std::move(rule));
  }
  return model;
}

class DeltaTest : public FolderTest {
 protected:
  void write_whole(const std::string& name, const Model& model, const Weights& weights) const {
    write_snapshot(path(name), model, content_of(weights), {1, {}, {}});
  }
  DeltaSummary write_delta(const std::string& name, const std::string& base, const Model& model,
                           const Weights& weights) const {
    return write_delta_snapshot(path(name), Snapshot::open(path(base)), model, "the new version", content_of(weights),
                                {2, {}, {}});
  }
  /// All bytes of a snapshot, in the order of the model.
  static Weights read_all(const Snapshot& snapshot, const Model& model) {
    Weights weights;
    for (const ParameterRule& rule : model.parameters) {
      const std::size_t index = index_of(snapshot, rule.info.name);
      weights.emplace_back(snapshot.tensors()[index].size_bytes().value());
      snapshot.read(index, 0, weights.back());
    }
    return weights;
  }
  static std::size_t index_of(const Snapshot& snapshot, const std::string& name) {
    for (std::size_t i = 0; i < snapshot.tensors().size(); ++i) {
      if (snapshot.tensors()[i].name == name) return i;
    }
    throw Error(ExitCode::internal, "no " + name);
  }

 private:
  struct Copy {
    const Weights* weights;
    void operator()(std::size_t index, std::uint64_t offset, std::span<std::byte> destination) const {
      std::copy_n((*weights)[index].begin() + static_cast<std::ptrdiff_t>(offset), destination.size(),
                  destination.begin());
    }
  };
  static Copy content_of(const Weights& weights) { return {&weights}; }
};

}  // namespace weightcast::harness
