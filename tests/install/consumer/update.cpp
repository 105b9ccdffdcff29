#include <cstdio>

#include "weightcast/engine/engine.hpp"
#include "weightcast/trainer/trainer.hpp"

using namespace weightcast;

int main(int argc, char** argv) {
  const MpiEnvironment mpi(&argc, &argv);
  const auto world = Communicator::duplicate(MPI_COMM_WORLD);
  const auto tp = static_cast<std::uint64_t>(world.size()) - 1;
  const auto plan = make_plan(build_model(load_model_config("tiny")), tp, 1);
  const auto old = make_synthetic_source(plan.model, 1), fresh = make_synthetic_source(plan.model, 2);
  if (world.rank() == 0) {
    Trainer trainer(plan);
    const auto weights = trainer.load(*fresh, 1);
    trainer.init_parameter_update_group(world, {.tp = tp}, 1);
    std::printf("digest %s\n", trainer.update_weights(weights, 2).digest->hex().c_str());
  } else {
    Engine engine(plan, static_cast<std::size_t>(world.rank()) - 1, CommitMode::swap, {});
    engine.load(
        1, [&](std::size_t p, std::uint64_t offset, std::span<std::byte> to) { old->read(p, offset, to); }, 1);
    engine.init_parameter_update_group(world, {.tp = tp});
    if (world.rank() > 1) {
      engine.serve();  // until rank 1 shuts down
    } else {
      engine.update_weights(2).throw_if_refused();
      engine.shutdown();
    }
  }
}
