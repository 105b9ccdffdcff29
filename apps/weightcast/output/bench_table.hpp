#pragma once

#include "options/bench_options.hpp"
#include "weightcast/plan/roster.hpp"
#include "weightcast/telemetry/report.hpp"

/// What `bench` prints on the standard output: a header, then a row for each combination.
namespace weightcast {

void print_bench_header(const BenchOptions& options, const Roster& roster, MemoryKind memory);
/// With what else there is to say of the combination, in lines of their own.
void print_bench_row(const ReportRow& row, const BenchOptions& options);

}  // namespace weightcast
