#include "commands/preflight.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <set>
#include <sstream>

#include "commands/container_notes.hpp"
#include "output/table.hpp"
#include "weightcast/core/bytes.hpp"
#include "weightcast/core/file.hpp"
#include "weightcast/core/parallel.hpp"
#include "weightcast/device/memory_room.hpp"
#include "weightcast/job/placement.hpp"

namespace weightcast {
namespace {

std::string describe_rank(const ReportRank& rank) {
  const auto memory = memory_room();
  return fmt::format("{:>4}  {:<8} {:<24} {:>5}  {:>9} of {:<9} {}", rank.rank, rank.role, printable(rank.host, 24),
                     available_cores(), format_size(memory.free_bytes), format_size(memory.limit_bytes),
                     rank.gpu.empty() ? "-" : rank.gpu);
}

void print_table(const Peers& peers, Method method, const std::vector<std::string>& ranks,
                 const std::string& transports, const std::set<std::string>& notes) {
  fmt::print("{}", header_line(fmt::format("weightcast preflight: {}, memory {}, method {}", describe(peers.roster),
                                           name(peers.memory()), name(method))));
  fmt::print("rank  role     host                     cores  memory: free of total    gpu\n");
  for (const auto& rank : ranks) fmt::print("{}\n", rank);
  fmt::print("transports\n{}", transports);
  if (!notes.empty()) fmt::print("notes\n");
  for (const auto& note : notes) fmt::print("  {}\n", note);
}

}  // namespace

int run_preflight(const UpdateOptions& options, Job& job) {
  const auto body = [&] {
    expect_same(job.world(), describe(options), job.deadline());
    Roster roster;
    agree(job.world(), "preflight", job.deadline(),
          [&] { roster = form_roster(options.tp, options.dp, job.world().size(), options.trainers); });
    const auto placement = choose_placement(job.world(), roster, options, job.deadline());
    const auto peers = Peers::meet(job.world(), roster, placement, job.deadline());
    const auto hosts = gather_ranks(job.world(), roster, placement, job.deadline());
    const auto ranks =
        job.world().all_gather(describe_rank(hosts[static_cast<std::size_t>(job.world().rank())]), job.deadline());
    const auto method = options.method;
    const auto wanted = name_of(options.transport);
    std::string transports, refusals;
    bool usable = false;
    for (const auto transport : transport_names()) {
      const auto reasons = survey_transport(transport, method, peers, job.deadline()).reasons;
      const bool considered = wanted == "auto" || wanted == transport;
      if (reasons.empty()) {
        transports += fmt::format("  {:<8} usable\n", transport);
        usable = usable || considered;
      } else {
        transports += fmt::format("  {:<8} not usable: {}\n", transport, fmt::join(reasons, ", "));
        if (considered)
          refusals += fmt::format("{}{}: {}", refusals.empty() ? "" : "; ", transport, fmt::join(reasons, ", "));
      }
    }
    std::string found;
    for (const auto& note : container_notes(job.world(), job.deadline()))
      found += fmt::format("{}: {}\n", host_name(), note);
    std::set<std::string> notes;  // ranks of one host see the same
    for (const auto& text : job.world().all_gather(found, job.deadline())) {
      std::istringstream lines(text);
      for (std::string line; std::getline(lines, line);) notes.insert(line);
    }
    if (job.first()) print_table(peers, method, ranks, transports, notes);
    agree(job.world(), "preflight", job.deadline(), [&] {
      if (usable) return;
      throw Error(ExitCode::config, "no transport can be used. " + refusals,
                  "choose another with --transport, or --transport auto");
    });
  };
  return job.run(body);
}

}  // namespace weightcast
