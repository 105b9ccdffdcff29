#pragma once

#include <exception>
#include <optional>
#include <string>

#include "weightcast/core/file.hpp"

namespace weightcast {

/// The name of an output as it was when the program began. What is wrong with it is said later, when all ranks are
/// there to hear it; but of two jobs that run at once and write one name, each must have looked before the other wrote.
class EarlyName {
 public:
  /// Nothing when `path` is empty.
  explicit EarlyName(const std::string& path, Existing existing = Existing::replace) noexcept;

  explicit operator bool() const noexcept { return name_ || failure_; }
  /// What OutputName's constructor threw.
  const OutputName& get() const;
  /// Finds out before anything moves whether a report can be written there. Error(cant_create).
  void probe() const;

 private:
  std::optional<OutputName> name_;
  std::exception_ptr failure_;
};

}  // namespace weightcast
