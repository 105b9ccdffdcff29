#pragma once

#include <string>

#include "weightcast/telemetry/report.hpp"

namespace weightcast {

/// Versions of this program and of the libraries that it runs with; "not built in" for those that this build lacks.
/// Works before MPI is initialised.
ReportVersions versions();

/// The text of --version: a line each.
std::string version_text();

}  // namespace weightcast
