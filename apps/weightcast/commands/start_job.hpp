#pragma once

#include "weightcast/job/job.hpp"

namespace weightcast {

/// A Job of these arguments. Says so when ranks are long in coming; later no bar is there when the job prints an error.
Job start_job(double timeout_s, Finish finish, FinishLate finish_late, std::uint64_t trainers);

}  // namespace weightcast
