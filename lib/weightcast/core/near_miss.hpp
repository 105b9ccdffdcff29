#pragma once

#include <optional>
#include <set>
#include <string>
#include <string_view>

namespace weightcast {

/// The name that `word` looks like a slip or an abbreviation of, or nothing; the nearest where there are several.
/// Letter case and - or _ make no difference. A slip is a letter that is missing, too many, wrong, or swapped with its
/// neighbour: one of them in a name of 3 to 5 letters, up to two in a longer one, none in a shorter one. An
/// abbreviation has at least 3 letters. A name is a near miss of itself.
std::optional<std::string> near_miss(std::string_view word, const std::set<std::string>& names);

/// "did you mean --timeout? " before `hint` when there is a near miss, `hint` otherwise; `prefix` is what comes before
/// it.
std::string did_you_mean(std::string_view word, const std::set<std::string>& names, std::string_view prefix,
                         const std::string& hint);

}  // namespace weightcast
