#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "options/delta_options.hpp"
#include "weightcast/telemetry/report.hpp"

/// What `update` prints on the standard output: a header, a row for each update, and the verdict.
namespace weightcast {

/// `notes` say why transports were passed over; may be empty.
void print_update_header(const Report& report, const std::string& initial, const std::string& target,
                         VerifyChoice verify, DeltaChoice delta, const std::string& notes);
/// Not when the job is being ended and nobody reads.
void print_update_row(const ReportUpdate& row, std::uint64_t model_bytes, DeltaChoice delta);
/// "  payload    shipped ...": the columns of tables with deltas that say what was sent, and their values.
std::string payload_titles();
std::string payload_columns(const ReportPayload& sent, std::uint64_t egress_bytes, std::uint64_t model_bytes);
/// A line that says which part of the model left each trainer rank, where there are several.
void print_trainer_egress(const std::vector<std::uint64_t>& bytes, std::uint64_t model_bytes);
/// The last line counts verified parameters.
void print_update_summary(const Report& report, VerifyChoice verify);

}  // namespace weightcast
