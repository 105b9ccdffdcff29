#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

/// Who is who among the ranks of an update group: the only place that computes it. Pure.
namespace weightcast {

/// Ranks 0 ... trainers - 1 are the trainer; behind them come `dp` replicas of the engine, each of `tp` ranks in a row.
struct Roster {
  std::uint64_t trainers = 1, tp = 1, dp = 1;
  bool operator==(const Roster&) const = default;

  std::uint64_t engine_count() const noexcept { return tp * dp; }
  std::uint64_t rank_count() const noexcept { return trainers + engine_count(); }
  bool trainer(int rank) const noexcept { return static_cast<std::uint64_t>(rank) < trainers; }
  /// "trainer" or "engine".
  std::string_view role(int rank) const noexcept { return trainer(rank) ? "trainer" : "engine"; }

  // Of an engine rank.
  std::size_t tp_rank(int rank) const noexcept { return engine_index(rank) % tp; }
  std::size_t replica(int rank) const noexcept { return engine_index(rank) / tp; }
  /// The way back.
  int engine_rank(std::size_t replica, std::size_t tp_rank) const noexcept {
    return static_cast<int>(trainers + replica * tp + tp_rank);
  }
  /// The ranks that hold tp rank `tp_rank`'s shards: one of each replica, in their order.
  std::vector<int> holders(std::size_t tp_rank) const;

  /// Error(config) saying how to start it when there are not rank_count() ranks.
  void check_world(int ranks) const;

 private:
  std::size_t engine_index(int rank) const noexcept { return static_cast<std::size_t>(rank) - trainers; }
};

/// "1 trainer + 2 x tp 4 engine ranks", "3 trainer ranks + 2 x tp 4 engine ranks".
std::string describe(const Roster& roster);

/// The roster of a world of `ranks`: tp as given, or what `trainers` leave for each of `dp` replicas. Error(config)
/// saying how to start it when that is no whole number, or nothing.
Roster form_roster(const std::optional<std::uint64_t>& tp, std::uint64_t dp, int ranks, std::uint64_t trainers = 1);

}  // namespace weightcast
