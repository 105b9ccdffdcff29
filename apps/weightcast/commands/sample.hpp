#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "weightcast/engine/engine.hpp"
#include "weightcast/trainer/weight_source.hpp"

/// The seed's check: the first rows of twelve parameters, read through get_weights_by_parameter_name, before and after.
namespace weightcast {

/// The first `rows` rows of a parameter as its source has them, as float.
std::vector<float> sample_of(const Model& model, const WeightSource& source, std::size_t parameter, std::uint64_t rows);

/// On the first rank of a replica: reads the twelve samples and compares them bit for bit with `source`.
/// Error(mismatch) naming the parameter. Returns how many were compared.
std::size_t check_samples(Engine& engine, const Model& model, const WeightSource& source, std::uint64_t rows,
                          const std::string& when);

/// Error(mismatch) naming the sampled parameters that are the same in both sources: then a sample proves nothing.
void expect_samples_differ(const Model& model, const WeightSource& initial, const WeightSource& target,
                           std::uint64_t rows);

/// The header line that says so.
void print_sample(std::size_t count, std::uint64_t rows, const WeightSource& source, const std::string& when);

}  // namespace weightcast
