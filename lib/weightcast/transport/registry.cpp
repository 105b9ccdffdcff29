#include <fmt/ranges.h>

#include "weightcast/core/bytes.hpp"
#include "weightcast/transport/direct.hpp"
#include "weightcast/transport/mpi.hpp"
#include "weightcast/transport/nccl.hpp"

// The only file that knows all transports.
namespace weightcast {

std::string_view name(Method method) noexcept {
  return method == Method::sharded ? "sharded" : "broadcast";
}

std::vector<std::string_view> transport_names() {
  return {"direct", "nccl", "mpi"};
}

std::unique_ptr<Transport> make_transport(std::string_view name, Method method, MemoryKind memory) {
  if (name == "mpi") return method == Method::sharded ? make_mpi_sharded() : make_mpi_broadcast();
  if (name == "nccl") return make_nccl(method);
  if (name == "direct") {
    if (method != Method::sharded)
      fail(ExitCode::config, "transport direct has no method {}: engines pull what they need",
           weightcast::name(method));
    return make_direct(memory);
  }
  throw Error(ExitCode::usage, fmt::format("unknown transport '{}'", printable(name)),
              fmt::format("there are: {}", fmt::join(transport_names(), ", ")));
}

}  // namespace weightcast
