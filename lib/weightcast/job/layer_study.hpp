#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "weightcast/engine/engine.hpp"
#include "weightcast/plan/roster.hpp"
#include "weightcast/telemetry/report.hpp"

/// Where the time of requests goes, layer by layer, cold and warm: the first engine rank's notes reach rank 0.
namespace weightcast {

/// The layers of the request path, from the top.
inline constexpr std::array<const char*, 4> request_layers{"engine", "scheduler", "tp_worker", "model_runner"};

class LayerStudy {
 public:
  explicit LayerStudy(std::size_t calls_per_update) : calls_per_update_(calls_per_update) {}
  /// Engine ranks: the update that has just ended was the first, and so many came since (of which as many count as
  /// LayerTimes keeps). Local.
  void note_cold(const Engine& engine) { cold_ = summarize(engine, 1); }
  void note_warm(const Engine& engine, std::uint64_t updates) { warm_ = summarize(engine, updates); }
  /// What the first engine rank noted, on all ranks. Collective.
  ReportPath gather(const Communicator& world, const Roster& roster, Deadline deadline) const;

 private:
  /// The layers from the top, then the stages.
  std::vector<ReportCalls> summarize(const Engine& engine, std::uint64_t updates) const;

  std::size_t calls_per_update_;
  std::vector<ReportCalls> cold_, warm_;
};

/// Header lines, then a line for each layer and stage, in microseconds; nothing for an empty path.
void print_path(const ReportPath& path);

}  // namespace weightcast
