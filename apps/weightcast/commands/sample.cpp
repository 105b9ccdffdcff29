#include "commands/sample.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>

#include "output/table.hpp"

namespace weightcast {
namespace {

/// Bit for bit: NaN equals itself, -0 is not 0.
bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace

std::vector<float> sample_of(const Model& model, const WeightSource& source, std::size_t parameter,
                             std::uint64_t rows) {
  const auto& info = model.parameters[parameter].info;  // whatever part of it `parameter` is
  const auto all_rows = info.shape.empty() ? 1 : info.shape[0];
  const auto elements = std::min(rows, all_rows) * (*info.elements() / std::max<std::uint64_t>(all_rows, 1));
  const auto width = static_cast<std::uint64_t>(bits(info.dtype)) / 8;
  std::vector<std::byte> bytes(elements * width);
  source.read(parameter, 0, bytes);
  std::vector<float> values(elements);
  for (std::uint64_t i = 0; i < elements; ++i) values[i] = to_float(info.dtype, bytes.data() + i * width).value_or(0);
  return values;
}

std::size_t check_samples(Engine& engine, const Model& model, const WeightSource& source, std::uint64_t rows,
                          const std::string& when) {
  const auto samples = sample_parameters(model);
  for (const auto p : samples) {
    const auto& name = model.parameters[p].info.name;
    if (same_bits(engine.get_weights_by_parameter_name(name, rows).values, sample_of(model, source, p, rows))) continue;
    fail(ExitCode::mismatch, "{}: the first {} rows {} the update are not those of {}", name, rows, when,
         source.describe());
  }
  return samples.size();
}

void expect_samples_differ(const Model& model, const WeightSource& initial, const WeightSource& target,
                           std::uint64_t rows) {
  std::vector<std::string> equal;
  for (const auto p : sample_parameters(model)) {
    if (same_bits(sample_of(model, initial, p, rows), sample_of(model, target, p, rows)))
      equal.push_back(model.parameters[p].info.name);
  }
  if (equal.empty()) return;
  throw Error(ExitCode::mismatch,
              fmt::format("initial and target have the same {}: a sample proves nothing", fmt::join(equal, ", ")),
              "use different weights, or --verify all");
}

void print_sample(std::size_t count, std::uint64_t rows, const WeightSource& source, const std::string& when) {
  fmt::print("{}", header_line(fmt::format("sample: {} parameters x {} rows equal to {} {} the update{}", count, rows,
                                           source.describe(), when,
                                           when == "before" ? ", and initial and target differ in each" : "")));
}

}  // namespace weightcast
