#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "options/update_options.hpp"
#include "output/table.hpp"
#include "weightcast/telemetry/report.hpp"

/// What `update` prints on the standard output: a header, a row for each update, and the verdict.
namespace weightcast {

/// `notes` say why transports were passed over; may be empty.
void print_update_header(const Report& report, const UpdateOptions& options, const std::string& initial,
                         const std::string& target, const std::string& notes);
/// The last update of the report. Not when the job is being ended and nobody reads.
void print_update_row(const Report& report, const UpdateOptions& options);
/// Of several committed updates: a row of the medians, by column, and how the total times spread.
void print_update_median(const Report& report, const UpdateOptions& options);
/// Columns of tables with deltas that say what was sent, and their cells: payload, shipped, ...
std::vector<Column> payload_columns();
std::vector<std::string> payload_cells(const ReportPayload& sent, std::uint64_t egress_bytes,
                                       std::uint64_t model_bytes);
/// A line that says which part of the model left each trainer rank, where there are several.
void print_trainer_egress(const std::vector<std::uint64_t>& bytes, std::uint64_t model_bytes);
/// The last line counts verified parameters.
void print_update_summary(const Report& report, VerifyChoice verify);

}  // namespace weightcast
