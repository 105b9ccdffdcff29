#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "weightcast/tensor/tensor_info.hpp"
#include "weightcast/verify/digest.hpp"

/// What the ranks of an update group must agree on before a byte moves.
namespace weightcast {

/// Sent once, when the group is formed: everything that does not change from update to update.
struct Manifest {
  std::string schema = "weightcast.manifest/1";
  std::string plan_digest;                      ///< 32 hexadecimal digits: binds shapes, tp, offsets
  std::map<std::string, std::string> settings;  ///< transport, method, commit, verify, library versions, ...
  std::vector<TensorInfo> parameters;           ///< in the order of the plan
  bool operator==(const Manifest&) const = default;
};

/// Manifest as JSON.
std::string to_json(const Manifest& manifest);
/// The way back. Total: Error(bad_data) naming the byte offset, whatever the text is.
Manifest parse_manifest(std::string_view text);
/// The first difference in words ("settings.method is sharded here and broadcast there"), or an empty string.
std::string first_difference(const Manifest& mine, const Manifest& theirs);

/// What a claim asks for.
enum class UpdateKind : std::uint64_t {
  weights,    ///< parameters of a new version move
  unchanged,  ///< trainer and engines hold it already
  rollback,   ///< engines shall serve a version that they still hold
};

/// What travels for a version.
enum class Payload : std::uint64_t {
  dense,  ///< all bytes
  delta,  ///< what changed, see delta/delta.md
};

/// Sent at the beginning of every update (or of every parameter of one): what it claims. Plain data, sent as bytes.
struct UpdateClaim {
  std::array<char, 8> schema{'w', 'c', 'c', 'l', 'a', 'i', 'm', '2'};
  std::array<char, 32> plan_digest{};
  UpdateKind kind = UpdateKind::weights;
  Payload payload = Payload::dense;  ///< delta: trainer rank 0 has one, which others may not be able to send or take
  std::uint64_t base_version = 0, version = 0;
  std::uint64_t source_index = 0;                     ///< which of the trainer's source regions
  std::uint64_t first_parameter = 0, parameters = 0;  ///< range of this call
};
static_assert(std::is_trivially_copyable_v<UpdateClaim>);

}  // namespace weightcast
