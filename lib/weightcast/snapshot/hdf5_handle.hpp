#pragma once

#include <hdf5.h>

#include <string_view>

#include "weightcast/core/error.hpp"
#include "weightcast/core/unique_handle.hpp"
#include "weightcast/tensor/dtype.hpp"

/// HDF5 ids with an owner, and calls with a checked result. Internal to snapshot: no public header includes it.
namespace weightcast {

struct Hdf5Traits {
  using Type = hid_t;
  static constexpr hid_t null() noexcept { return -1; }
  /// Works for ids of every kind. Closing a file that may be incomplete must be checked: see close_hdf5().
  static void close(hid_t id) noexcept { H5Idec_ref(id); }
};
using Hdf5Id = UniqueHandle<Hdf5Traits>;

/// Keeps the library from printing its error stack while in scope.
class QuietHdf5 {
 public:
  QuietHdf5() noexcept {
    H5Eget_auto2(H5E_DEFAULT, &function_, &data_);
    H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
  }
  ~QuietHdf5() { H5Eset_auto2(H5E_DEFAULT, function_, data_); }
  QuietHdf5(QuietHdf5&&) = delete;

 private:
  H5E_auto2_t function_ = nullptr;
  void* data_ = nullptr;
};

/// Throws Error(code) "cannot <what>: <the library's reason>" when `result` is negative.
void check_hdf5(long long result, ExitCode code, std::string_view what);

/// Owner of an id that a call returned; Error(code) when the call failed.
inline Hdf5Id own_hdf5(hid_t id, ExitCode code, std::string_view what) {
  check_hdf5(id, code, what);
  return Hdf5Id(id);
}

/// Closes and checks; of a file: collective if it was opened so. All other ids of a file must be closed before it.
inline void close_hdf5(Hdf5Id& id, ExitCode code, std::string_view what) {
  check_hdf5(H5Idec_ref(id.release()), code, what);
}

/// File access properties with which the library takes no locks: files that are read are locked by their reader, new
/// ones are known to nobody else, and not every file system has locks.
Hdf5Id lock_free_access();

/// The type of a dataset of that dtype (format.md). Error(config) for a dtype that a snapshot cannot hold.
Hdf5Id hdf5_type(DType dtype);

/// UTF-8 text of `size` bytes, padded with zero bytes.
Hdf5Id hdf5_text_type(std::size_t size);

}  // namespace weightcast
