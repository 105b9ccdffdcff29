#include "output/trace.hpp"

#include <nlohmann/json.hpp>
#include <utility>

namespace weightcast {

void Trace::add(const ReportUpdate& update, std::size_t trainer_rank) {
  double begin = clock_.elapsed_s() - update.total_s;
  events_.push_back({"update " + std::to_string(update.id), trainer_rank, begin, update.total_s});
  const std::pair<const char*, double> stages[] = {{"prepare", update.prepare_s},
                                                   {"stage", update.stage_s},
                                                   {"verify", update.verify_s},
                                                   {"vote", update.vote_s},
                                                   {"commit", update.commit_s}};
  for (const auto& [name, seconds] : stages) {
    events_.push_back({name, trainer_rank, begin, seconds});
    begin += seconds;
  }
}

std::string Trace::to_json() const {
  auto events = nlohmann::json::array();
  for (const auto& event : events_) {
    events.push_back({{"name", event.name},
                      {"ph", "X"},
                      {"pid", 0},
                      {"tid", event.rank},
                      {"ts", event.begin_s * 1e6},
                      {"dur", event.duration_s * 1e6}});
  }
  return nlohmann::json{{"traceEvents", events}}.dump() + "\n";
}

}  // namespace weightcast
