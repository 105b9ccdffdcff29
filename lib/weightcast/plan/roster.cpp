#include "weightcast/plan/roster.hpp"

#include "weightcast/core/error.hpp"

namespace weightcast {
namespace {

/// "1 trainer", "3 trainer ranks".
std::string in_words(std::uint64_t trainers) {
  return trainers == 1 ? "1 trainer" : fmt::format("{} trainer ranks", trainers);
}

}  // namespace

std::vector<int> Roster::holders(std::size_t tp_rank) const {
  std::vector<int> ranks;
  for (std::uint64_t replica = 0; replica < dp; ++replica) ranks.push_back(engine_rank(replica, tp_rank));
  return ranks;
}

void Roster::check_world(int ranks) const {
  if (static_cast<std::uint64_t>(ranks) == rank_count()) return;
  throw Error(ExitCode::config,
              fmt::format("tp {} x dp {} needs {} ranks ({} + {} engine ranks), but there are {}", tp, dp, rank_count(),
                          in_words(trainers), engine_count(), ranks),
              fmt::format("start it with mpirun -n {}", rank_count()));
}

std::string describe(const Roster& roster) {
  return fmt::format("{} + {} x tp {} engine ranks", in_words(roster.trainers), roster.dp, roster.tp);
}

Roster form_roster(const std::optional<std::uint64_t>& tp, std::uint64_t dp, int ranks, std::uint64_t trainers) {
  const auto world = static_cast<std::uint64_t>(ranks);
  const auto engines = world > trainers ? world - trainers : 0;
  Roster roster{trainers, tp.value_or(1), dp};
  if (!tp && dp > 0 && engines % dp == 0) roster.tp = engines / dp;
  if (trainers > 0 && roster.tp > 0 && roster.dp > 0 && roster.tp <= engines && roster.dp == engines / roster.tp &&
      engines % roster.tp == 0)
    return roster;
  roster.tp = tp.value_or(1);
  const auto wanted = fmt::format("{} + {} x {} engine ranks", in_words(trainers), dp,
                                  tp ? fmt::format("tp {}", *tp) : std::string("tp"));
  if (ranks == 1) {
    throw Error(ExitCode::config, fmt::format("started as one rank alone, but this takes {}", wanted),
                fmt::format("start it with mpirun in front: mpirun -n {}", roster.rank_count()));
  }
  throw Error(ExitCode::config, fmt::format("{} ranks are not {}", ranks, wanted),
              fmt::format("start it with mpirun -n {}, or change {}--tp and --dp", roster.rank_count(),
                          trainers > 1 ? "--trainers, " : ""));
}

}  // namespace weightcast
