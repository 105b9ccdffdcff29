#include "weightcast/job/early_name.hpp"

namespace weightcast {

EarlyName::EarlyName(const std::string& path, Existing existing) noexcept {
  if (path.empty()) return;
  try {
    name_.emplace(path, existing);
  } catch (...) {
    failure_ = std::current_exception();
  }
}

const OutputName& EarlyName::get() const {
  if (failure_) std::rethrow_exception(failure_);
  return name_.value();
}

void EarlyName::probe() const {
  if (*this && !get().stream()) OutputFile probe(get());
}

}  // namespace weightcast
