#include "weightcast/job/serving.hpp"

#include <algorithm>

#include "weightcast/comm/reason.hpp"

namespace weightcast {

void while_serving(const Job& job, Engine* engine, FunctionRef<void(const Communicator& callers)> body) {
  const bool caller = engine == nullptr || engine->group().replica().rank() == 0;
  const auto callers = job.world().split(caller ? 0 : -1, job.world().rank(), job.deadline());
  std::optional<Error> failure;
  try {
    if (caller) {
      body(callers);
    } else {
      engine->serve();
    }
  } catch (...) {
    failure = current_error();
  }
  // Engines here do nothing but receive, and trainers nothing but publish: who keeps the other waiting has stopped.
  if (failure && failure->code() == ExitCode::busy && failure->reach() == Error::Reach::local)
    failure = silence(std::max(failure->origin().rank, 0), "prepare");
  if (failure && failure->reach() == Error::Reach::lost) throw Error(*failure);
  if (caller && engine != nullptr) engine->shutdown();
  agree(job.world(), "serve", job.deadline(), [&] {
    if (failure) throw Error(*failure);
  });
}

}  // namespace weightcast
