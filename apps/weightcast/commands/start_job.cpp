#include "commands/start_job.hpp"

#include <utility>

#include "output/progress.hpp"

namespace weightcast {

Job start_job(double timeout_s, Finish finish, FinishLate finish_late, std::uint64_t trainers) {
  const Progress starting("waiting for all ranks to start");
  const auto first_silent = [](auto last) {
    return [last = std::move(last)](const auto& error) {
      Progress::silence();
      last(error);
    };
  };
  return Job(timeout_s, first_silent(std::move(finish)), first_silent(std::move(finish_late)), trainers);
}

}  // namespace weightcast
