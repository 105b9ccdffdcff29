#include "weightcast/snapshot/hdf5_handle.hpp"

#include <algorithm>
#include <string>

namespace weightcast {
namespace {

/// Keeps the description of the innermost failure (walked first), which names the cause: "No space left on device", ...
herr_t keep_first(unsigned position, const H5E_error2_t* error, void* text) {
  if (position == 0 && error->desc != nullptr) *static_cast<std::string*>(text) = error->desc;
  return 0;
}

Hdf5Id copy_type(hid_t type) {
  return own_hdf5(H5Tcopy(type), ExitCode::internal, "copy an HDF5 type");
}

/// A little-endian 16-bit float. HDF5 wants the fields first, then the precision, then the size.
Hdf5Id half_type(std::size_t exponent_bits, std::size_t mantissa_bits, std::size_t bias) {
  Hdf5Id type = copy_type(H5T_IEEE_F32LE);
  check_hdf5(H5Tset_fields(type.get(), 15, mantissa_bits, exponent_bits, 0, mantissa_bits), ExitCode::internal,
             "make a type");
  check_hdf5(H5Tset_precision(type.get(), 16), ExitCode::internal, "make a type");
  check_hdf5(H5Tset_ebias(type.get(), bias), ExitCode::internal, "make a type");
  check_hdf5(H5Tset_size(type.get(), 2), ExitCode::internal, "make a type");
  return type;
}

}  // namespace

void check_hdf5(long long result, ExitCode code, std::string_view what) {
  if (result >= 0) return;
  std::string reason = "no reason given";
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, keep_first, &reason);
  std::ranges::replace(reason, '\n', ' ');
  fail(code, "cannot {}: HDF5 says: {}", what, reason);
}

Hdf5Id lock_free_access() {
  Hdf5Id access = own_hdf5(H5Pcreate(H5P_FILE_ACCESS), ExitCode::internal, "make properties");
  check_hdf5(H5Pset_file_locking(access.get(), false, true), ExitCode::internal, "set properties");
  return access;
}

Hdf5Id hdf5_type(DType dtype) {
  switch (dtype) {
    case DType::BF16: return half_type(8, 7, 127);
    case DType::F16: return half_type(5, 10, 15);
    case DType::F32: return copy_type(H5T_IEEE_F32LE);
    case DType::F64: return copy_type(H5T_IEEE_F64LE);
    case DType::I8: return copy_type(H5T_STD_I8LE);
    case DType::I16: return copy_type(H5T_STD_I16LE);
    case DType::I32: return copy_type(H5T_STD_I32LE);
    case DType::I64: return copy_type(H5T_STD_I64LE);
    case DType::U16: return copy_type(H5T_STD_U16LE);
    case DType::U32: return copy_type(H5T_STD_U32LE);
    case DType::U64: return copy_type(H5T_STD_U64LE);
    default: break;
  }
  if (bits(dtype) == 8) return copy_type(H5T_STD_U8LE);
  fail(ExitCode::config, "a snapshot cannot hold tensors of type {}", name(dtype));
}

Hdf5Id hdf5_text_type(std::size_t size) {
  Hdf5Id type = copy_type(H5T_C_S1);
  check_hdf5(H5Tset_size(type.get(), size), ExitCode::internal, "make a text type");
  check_hdf5(H5Tset_strpad(type.get(), H5T_STR_NULLPAD), ExitCode::internal, "make a text type");
  check_hdf5(H5Tset_cset(type.get(), H5T_CSET_UTF8), ExitCode::internal, "make a text type");
  return type;
}

}  // namespace weightcast
