#include <cstdio>

#include "weightcast/plan/transfer_plan.hpp"

int main() {
  const auto model = weightcast::build_model(weightcast::load_model_config("llama-3.2-1b"));
  const auto plan = weightcast::make_plan(model, 4, 1);
  if (!weightcast::prove_coverage(plan).empty()) return 1;
  std::printf("plan %s\n", plan.digest.c_str());
}
