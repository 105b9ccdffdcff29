#pragma once

#include <cstddef>
#include <string>
#include <string_view>

/// Text that fits a terminal. Widths are counted in bytes: characters outside ASCII take no more columns than bytes.
namespace weightcast {

/// The width of tables, and of terminals that do not say theirs.
inline constexpr std::size_t usual_columns = 80;

/// `text` of at most `limit` bytes, with "..." in place of its middle when it is longer: names differ at their ends.
/// Cuts no UTF-8 character in two.
std::string shorten(std::string_view text, std::size_t limit);

/// `text` in lines of at most `columns`, broken at spaces; the second and later ones begin with `indent`. A word that
/// is longer than a line is shortened. Without a newline at the end.
std::string fold(std::string_view text, std::string_view indent, std::size_t columns = usual_columns);

}  // namespace weightcast
