#include "weightcast/plan/roster.hpp"

#include "weightcast/core/error.hpp"

namespace weightcast {

std::vector<int> Roster::holders(std::size_t tp_rank) const {
  std::vector<int> ranks;
  for (std::uint64_t replica = 0; replica < dp; ++replica) ranks.push_back(engine_rank(replica, tp_rank));
  return ranks;
}

void Roster::check_world(int ranks) const {
  if (static_cast<std::uint64_t>(ranks) == rank_count()) return;
  throw Error(ExitCode::config,
              fmt::format("tp {} x dp {} needs {} ranks ({} trainer + {} engine ranks), but there are {}", tp, dp,
                          rank_count(), trainers, engine_count(), ranks),
              fmt::format("start it with mpirun -n {}", rank_count()));
}

Roster form_roster(const std::optional<std::uint64_t>& tp, std::uint64_t dp, int ranks) {
  Roster roster{.tp = tp.value_or(1), .dp = dp};
  const auto engines = static_cast<std::uint64_t>(ranks) - roster.trainers;
  if (!tp && dp > 0 && engines % dp == 0) roster.tp = engines / dp;
  if (roster.tp > 0 && roster.dp > 0 && roster.tp <= engines && roster.dp == engines / roster.tp &&
      engines % roster.tp == 0)
    return roster;
  roster.tp = tp.value_or(1);
  throw Error(ExitCode::config,
              fmt::format("{} ranks are not {} trainer + {} x {} engine ranks", ranks, roster.trainers, dp,
                          tp ? fmt::format("tp {}", *tp) : std::string("tp")),
              fmt::format("start it with mpirun -n {}, or change --tp and --dp", roster.rank_count()));
}

}  // namespace weightcast
