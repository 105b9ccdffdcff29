#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "options/delta_options.hpp"
#include "options/job_options.hpp"

namespace weightcast {

/// What `weightcast update` was asked to do.
struct UpdateOptions : JobOptions {
  std::string initial, target;  ///< path of a checkpoint, "synth" or "synth:SEED"; never empty, but with `preflight`
  std::vector<std::string> ignore;   ///< patterns of tensors that may be left out
  std::optional<std::string> model;  ///< shape; there when both weights are synthetic
  TransportChoice transport = TransportChoice::automatic;
  Method method = Method::sharded;
  Granularity granularity = Granularity::model;
  DeltaChoice delta = DeltaChoice::off;
  double delta_limit = 0.4;
  CommitMode commit = CommitMode::swap;
  VerifyChoice verify = VerifyChoice::all;
  std::uint64_t truncate = 10, repeat = 1;
  std::uint64_t scrub = 0;      ///< after so many updates each; 0: never
  std::string snapshot, trace;  ///< output files; empty: none
  bool force = false;           ///< a file that is there may become the snapshot
  bool preflight = false;
  bool wide = false;  ///< print every column
};

CommandSpec update_command();
/// Reads and checks every value. Error(usage), Error(config).
UpdateOptions parse_update_options(const Options& options);
/// Runs the job; returns the exit status. Called on every rank, MPI not yet initialised.
int run_update(const UpdateOptions& options);

}  // namespace weightcast
