#include "weightcast/transport/bound_transport.hpp"

namespace weightcast {

std::unique_ptr<Transport> make_nccl_sharded() {
  throw Error(
      ExitCode::config, "this build has no NCCL",
      "build with CUDA and NCCL (cmake -DWEIGHTCAST_CUDA=ON says what is missing), or choose another transport");
}

std::unique_ptr<Transport> make_nccl_broadcast() {
  return make_nccl_sharded();
}

}  // namespace weightcast
