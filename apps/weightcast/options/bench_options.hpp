#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "options/delta_options.hpp"
#include "options/job_options.hpp"

namespace weightcast {

/// What `weightcast bench` was asked to time: every combination of the lists, none of them empty (but `gpus`).
struct BenchOptions : JobOptions {
  std::vector<std::string> models;  ///< named shapes or paths of config.json
  std::vector<TransportChoice> transports;
  std::vector<Method> methods;
  std::vector<Granularity> granularities;
  std::vector<VerifyChoice> verifies;  ///< of all and none
  std::uint64_t repeat = 20, warmup = 2;
  CommitMode commit = CommitMode::swap;
  std::vector<BenchDelta> deltas;
  double delta_limit = 0.4;
  std::optional<double> changed;  ///< share of the elements in which versions differ; nothing: every byte
  bool ceiling = false;
  bool wide = false;  ///< print every column
  bool group_warmup = true;
};

CommandSpec bench_command();
/// Reads and checks every value. Error(usage), Error(config).
BenchOptions parse_bench_options(const Options& options);
/// Runs the benchmark; returns the exit status. Called on every rank, MPI not yet initialised.
int run_bench(const BenchOptions& options);

}  // namespace weightcast
