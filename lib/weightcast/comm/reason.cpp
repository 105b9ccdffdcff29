#include "weightcast/comm/reason.hpp"

#include <algorithm>
#include <utility>

namespace weightcast {
namespace {

template <std::size_t N>
void store(std::array<char, N>& field, std::string_view text) {
  field.fill(0);
  const auto size = std::min(text.size(), N - 1);
  std::copy_n(text.begin(), size, field.begin());
  if (text.size() > size) std::copy_n("...", 3, field.begin() + static_cast<std::ptrdiff_t>(size) - 3);
}

}  // namespace

Reason make_reason(const Error& error, std::string_view stage, int rank, const std::string& host) {
  Reason reason;
  reason.code = static_cast<std::int32_t>(error.code());
  // An error that another agreement has already placed keeps its origin.
  reason.rank = error.origin().rank >= 0 ? error.origin().rank : rank;
  reason.lost = error.reach() == Error::Reach::lost ? 1 : 0;
  store(reason.stage, error.origin().stage.empty() ? stage : error.origin().stage);
  store(reason.host, error.origin().host.empty() ? host : error.origin().host);
  store(reason.hint, error.hint());
  store(reason.message, error.what());
  return reason;
}

void throw_reason(const Reason& reason) {
  Error error(static_cast<ExitCode>(reason.code), reason.message.data(), reason.hint.data());
  error.origin() = {reason.stage.data(), reason.rank, reason.host.data(), {}};
  error.set_reach(reason.lost != 0 ? Error::Reach::lost : Error::Reach::everybody);
  throw error;
}

std::string name_ranks(const std::vector<int>& sorted) {
  std::string text;
  for (std::size_t i = 0; i < sorted.size(); ++i) {
    const auto first = i;
    while (i + 1 < sorted.size() && sorted[i + 1] == sorted[i] + 1) ++i;
    text += fmt::format("{}{}", text.empty() ? "" : ", ", sorted[first]);
    if (i > first) text += fmt::format("-{}", sorted[i]);
  }
  return (sorted.size() == 1 ? "rank " : "ranks ") + text;
}

Reason verdict(std::vector<Reason> reasons, int ranks) {
  if (reasons.empty()) return {};
  std::ranges::stable_sort(reasons, {}, &Reason::rank);
  for (const auto& reason : reasons) {
    if (reason.lost != 0) return reason;
  }
  // A failure with a cause outranks a wait that only ran out because of it.
  const auto waited = [](const Reason& reason) { return reason.code == static_cast<int>(ExitCode::deadline); };
  if (!std::all_of(reasons.begin(), reasons.end(), waited)) std::erase_if(reasons, waited);
  std::vector<std::pair<std::string, std::vector<int>>> by_message;
  for (const auto& reason : reasons) {
    const std::string message = reason.message.data();
    auto entry = std::find_if(by_message.begin(), by_message.end(), [&](const auto& e) { return e.first == message; });
    if (entry == by_message.end()) entry = by_message.insert(entry, {message, {}});
    // An error that all have met already is reported by each, but has one origin.
    const auto place = std::lower_bound(entry->second.begin(), entry->second.end(), reason.rank);
    if (place == entry->second.end() || *place != reason.rank) entry->second.insert(place, reason.rank);
  }
  auto lead = reasons.front();
  const auto guilty = by_message.front().second.size();
  if (by_message.size() == 1 && (guilty == 1 || guilty == static_cast<std::size_t>(ranks))) return lead;
  std::string text;
  for (const auto& [message, who] : by_message)
    text += fmt::format("{}{}: {}", text.empty() ? "" : "; ", name_ranks(who), message);
  store(lead.message, text);
  return lead;
}

Error silence(int rank, std::string_view stage) {
  Error error(ExitCode::deadline, fmt::format("rank {} did not answer in time at stage {}", rank, stage),
              "look for a stopped, swapping or dead process there, or give it more time with --timeout");
  error.origin() = {std::string(stage), rank, {}, {}};
  error.set_reach(Error::Reach::lost);
  return error;
}

}  // namespace weightcast
