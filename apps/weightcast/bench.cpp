#include "bench_options.hpp"

namespace weightcast {

int run_bench(const BenchOptions& /*options*/) {
  fail(ExitCode::internal, "bench is not there yet");
}

}  // namespace weightcast
