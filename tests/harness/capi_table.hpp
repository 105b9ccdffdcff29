#pragma once

#include <mpi.h>

#include <cstdint>
#include <string>
#include <vector>

#include "weightcast/capi/weightcast.h"
#include "weightcast/device/memory.hpp"

namespace weightcast::harness {

inline int world_rank() {
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  return rank;
}
inline int world_size() {
  int size = 0;
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  return size;
}

/// A table for the C interface, and memory for what it points to.
class Table {
 public:
  void add(const std::string& name, std::vector<std::uint64_t> shape, void* data, std::uint64_t pitch = 0,
           const char* dtype = "BF16") {
    entries_.push_back({name, dtype, std::move(shape), data, pitch, {}, {}, {}});
  }
  explicit Table(Placement placement = {}) : placement_(placement) {}
  const std::vector<wc_tensor>& view() {
    view_.clear();
    for (const auto& entry : entries_) {
      view_.push_back({.size = sizeof(wc_tensor),
                       .name = entry.name.c_str(),
                       .dtype = entry.dtype.c_str(),
                       .shape = entry.shape.data(),
                       .dimensions = entry.shape.size(),
                       .data = entry.data,
                       .row_pitch_bytes = entry.pitch,
                       .memory = placement_.kind == MemoryKind::cuda ? WC_CUDA : WC_HOST,
                       .device = placement_.gpu,
                       .strides_bytes = entry.strides.empty() ? nullptr : entry.strides.data(),
                       .offsets = entry.offsets.empty() ? nullptr : entry.offsets.data(),
                       .full_shape = entry.full_shape.empty() ? nullptr : entry.full_shape.data()});
    }
    return view_;
  }
  struct Entry {
    std::string name, dtype;
    std::vector<std::uint64_t> shape;
    void* data;
    std::uint64_t pitch;
    std::vector<std::int64_t> strides = {};
    std::vector<std::uint64_t> offsets = {}, full_shape = {};  // of a part of a parameter
  };
  std::vector<Entry>& entries() { return entries_; }

 private:
  Placement placement_;
  std::vector<Entry> entries_;
  std::vector<wc_tensor> view_;
};

}  // namespace weightcast::harness
