#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "weightcast/core/error.hpp"

/// How an error travels between ranks: plain data of fixed size, so that nothing is allocated between them. For those
/// who make ranks agree: agree() here, the offer in room update.
namespace weightcast {

struct Reason {
  std::int32_t code = 0;   ///< ExitCode; ok: no error
  std::int32_t rank = -1;  ///< the guilty one
  std::int32_t lost = 0;   ///< 1: it is out of reach (Error::Reach::lost)
  std::array<char, 32> stage{};
  std::array<char, 84> host{};
  std::array<char, 512> hint{};
  std::array<char, 3456> message{};
};
static_assert(std::is_trivially_copyable_v<Reason>);

/// What `rank` on `host` tells the others of `error`, which it met in `stage`. An error that was placed before keeps
/// its origin. Texts that are too long end in dots.
Reason make_reason(const Error& error, std::string_view stage, int rank, const std::string& host);

/// What everybody is told: the reason of the lowest guilty rank, with the reasons of all others in its message; no
/// error when there are none. A failure with a cause outranks a wait that only ran out because of it. `ranks`: of the
/// group.
Reason verdict(std::vector<Reason> reasons, int ranks);

/// Throws it as the Error that all ranks throw, or that only the survivors of a lost rank throw.
[[noreturn]] void throw_reason(const Reason& reason);

/// "rank 3", "ranks 1-4, 7".
std::string name_ranks(const std::vector<int>& sorted);

/// A rank that does not answer any more: Error(deadline) of Reach::lost.
Error silence(int rank, std::string_view stage);

}  // namespace weightcast
