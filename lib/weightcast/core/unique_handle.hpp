#pragma once

#include <utility>

namespace weightcast {

/// Sole owner of a C handle; move-only. `Traits` has `using Type`, `static constexpr/const Type null()` and
/// `static void close(Type) noexcept`. The destructor closes and never throws; views elsewhere are plain `Type`.
template <typename Traits>
class UniqueHandle {
 public:
  using Type = typename Traits::Type;

  UniqueHandle() noexcept = default;
  explicit UniqueHandle(Type handle) noexcept : handle_(handle) {}
  UniqueHandle(UniqueHandle&& other) noexcept : handle_(other.release()) {}
  UniqueHandle& operator=(UniqueHandle&& other) noexcept {
    if (this != &other) reset(other.release());
    return *this;
  }
  UniqueHandle(const UniqueHandle&) = delete;
  UniqueHandle& operator=(const UniqueHandle&) = delete;
  ~UniqueHandle() { reset(); }

  Type get() const noexcept { return handle_; }
  explicit operator bool() const noexcept { return handle_ != Traits::null(); }
  Type release() noexcept { return std::exchange(handle_, Traits::null()); }
  void reset(Type handle = Traits::null()) noexcept {
    if (handle_ != Traits::null()) Traits::close(handle_);
    handle_ = handle;
  }

 private:
  Type handle_ = Traits::null();
};

}  // namespace weightcast
