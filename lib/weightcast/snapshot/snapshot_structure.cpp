#include <array>

#include "weightcast/core/error.hpp"
#include "weightcast/snapshot/hdf5_handle.hpp"
#include "weightcast/snapshot/snapshot_layout.hpp"
#include "weightcast/snapshot/snapshot_walk.hpp"

namespace weightcast {
namespace {

constexpr std::size_t name_limit = 512, dataset_limit = 100'000, rank_limit = 8, text_limit = 64 * 1024;
constexpr auto bad_data = ExitCode::bad_data;

void require(bool condition, std::string_view what) {
  if (!condition) fail(bad_data, "{}", what);
}

/// A fixed-length text attribute, without the zero bytes at its end.
std::string read_text(hid_t object, const char* name) {
  const Hdf5Id attribute =
      own_hdf5(H5Aopen(object, name, H5P_DEFAULT), bad_data, fmt::format("read the attribute {}", name));
  const Hdf5Id type = own_hdf5(H5Aget_type(attribute.get()), bad_data, "read a type");
  const Hdf5Id space = own_hdf5(H5Aget_space(attribute.get()), bad_data, "read a dataspace");
  require(H5Tget_class(type.get()) == H5T_STRING && H5Tis_variable_str(type.get()) == 0,
          "an attribute is not a text of fixed length");
  require(H5Sget_simple_extent_type(space.get()) == H5S_SCALAR, "a text attribute is not a scalar");
  const std::size_t size = H5Tget_size(type.get());
  require(size > 0 && size <= text_limit, "a text attribute has an impossible size");
  std::string text(size, '\0');
  check_hdf5(H5Aread(attribute.get(), type.get(), text.data()), bad_data, fmt::format("read the attribute {}", name));
  text.resize(text.find_last_not_of('\0') + 1);
  return text;
}

Digest read_digest(hid_t object, const char* name) {
  const auto digest = Digest::from_hex(read_text(object, name));
  require(digest.has_value(), "a digest is not 32 hexadecimal digits");
  return *digest;
}

std::uint32_t read_format_version(hid_t file) {
  const Hdf5Id attribute =
      own_hdf5(H5Aopen(file, "format_version", H5P_DEFAULT), bad_data, "read the attribute format_version");
  const Hdf5Id type = own_hdf5(H5Aget_type(attribute.get()), bad_data, "read a type");
  const Hdf5Id space = own_hdf5(H5Aget_space(attribute.get()), bad_data, "read a dataspace");
  require(H5Tequal(type.get(), H5T_STD_U32LE) > 0 && H5Sget_simple_extent_type(space.get()) == H5S_SCALAR,
          "format_version is not one unsigned integer of 32 bits");
  std::uint32_t version = 0;
  check_hdf5(H5Aread(attribute.get(), H5T_NATIVE_UINT32, &version), bad_data, "read the attribute format_version");
  return version;
}

/// Names of the links in a group, all of them hard links, in ascending order.
std::vector<std::string> child_names(hid_t group) {
  H5G_info_t info;
  check_hdf5(H5Gget_info(group, &info), bad_data, "read a group");
  require(info.nlinks <= dataset_limit, "a group has too many members");
  std::vector<std::string> names;
  const auto collect = [](hid_t, const char* name, const H5L_info_t* link, void* list) -> herr_t {
    auto& collected = *static_cast<std::vector<std::string>*>(list);
    if (link->type != H5L_TYPE_HARD || std::char_traits<char>::length(name) > name_limit ||
        collected.size() >= dataset_limit)
      return -1;
    collected.emplace_back(name);
    return 0;
  };
  check_hdf5(H5Literate(group, H5_INDEX_NAME, H5_ITER_INC, nullptr, collect, &names), bad_data,
             "list a group, which may hold hard links with names of up to 512 bytes only");
  return names;
}

void check_storage(hid_t dataset) {
  const Hdf5Id properties = own_hdf5(H5Dget_create_plist(dataset), bad_data, "read properties");
  require(H5Pget_layout(properties.get()) == H5D_CONTIGUOUS, "a dataset is not contiguous");
  require(H5Pget_external_count(properties.get()) == 0, "a dataset keeps its data in another file");
  require(H5Pget_nfilters(properties.get()) == 0, "a dataset has filters");
}

/// A dataset whose bytes lie in the file as they are.
Hdf5Id open_dataset(hid_t group, const std::string& name) {
  Hdf5Id object = own_hdf5(H5Oopen(group, name.c_str(), H5P_DEFAULT), bad_data, "open an object");
  require(H5Iget_type(object.get()) == H5I_DATASET, "it is not a dataset");
  check_storage(object.get());
  return object;
}

std::vector<std::uint64_t> read_shape(hid_t dataset) {
  const Hdf5Id space = own_hdf5(H5Dget_space(dataset), bad_data, "read a dataspace");
  require(H5Sis_simple(space.get()) > 0 && H5Sget_simple_extent_type(space.get()) != H5S_NULL,
          "a dataset has no simple shape");
  const int rank = H5Sget_simple_extent_ndims(space.get());
  require(rank >= 0 && rank <= static_cast<int>(rank_limit), "a dataset has too many dimensions");
  std::array<hsize_t, rank_limit> extents{}, limits{};
  check_hdf5(H5Sget_simple_extent_dims(space.get(), extents.data(), limits.data()), bad_data, "read a shape");
  require(extents == limits, "a dataset can be extended");
  return {extents.begin(), extents.begin() + rank};
}

DType read_dtype(hid_t object) {
  const auto dtype = dtype_from_name(read_text(object, "dtype"));
  require(dtype.has_value(), "its dtype is unknown");
  return *dtype;
}

WalkedDataset walk_dataset(hid_t group, const std::string& name) {
  const Hdf5Id object = open_dataset(group, name);
  WalkedDataset dataset;
  dataset.info.name = name;
  dataset.info.dtype = read_dtype(object.get());
  const Hdf5Id type = own_hdf5(H5Dget_type(object.get()), bad_data, "read a type");
  require(H5Tequal(type.get(), hdf5_type(dataset.info.dtype).get()) > 0, "its HDF5 type is not that of its dtype");
  dataset.info.shape = read_shape(object.get());
  const auto size = dataset.info.size_bytes();
  require(size.has_value() && *size == H5Dget_storage_size(object.get()), "its storage has not the size of its shape");
  dataset.digest = read_digest(object.get(), "digest");
  const haddr_t offset = *size == 0 ? 0 : H5Dget_offset(object.get());
  require(offset != HADDR_UNDEF, "it has no data");
  dataset.offset = offset;
  return dataset;
}

/// One of the three rows of numbers of a change.
WalkedRun walk_run(hid_t group, const std::string& name, hid_t expected) {
  const Hdf5Id dataset = open_dataset(group, name);
  const Hdf5Id type = own_hdf5(H5Dget_type(dataset.get()), bad_data, "read a type");
  require(H5Tequal(type.get(), expected) > 0, fmt::format("the HDF5 type of its {} is another", name));
  const auto shape = read_shape(dataset.get());
  require(shape.size() == 1 && shape[0] > 0, fmt::format("its {} are not a row", name));
  const auto size = checked_multiply(shape[0], H5Tget_size(expected));
  require(size.has_value() && *size == H5Dget_storage_size(dataset.get()),
          fmt::format("the storage of its {} has not the size of their shape", name));
  const haddr_t offset = H5Dget_offset(dataset.get());
  require(offset != HADDR_UNDEF, fmt::format("its {} have no data", name));
  return {offset, shape[0], *size};
}

WalkedChange walk_change(hid_t delta, const std::string& name) {
  const Hdf5Id group = own_hdf5(H5Oopen(delta, name.c_str(), H5P_DEFAULT), bad_data, "open an object");
  require(H5Iget_type(group.get()) == H5I_GROUP, "it is not a group");
  require(child_names(group.get()) == std::vector<std::string>{"indices", "starts", "values"},
          "it holds something else than starts, indices and values");
  WalkedChange change;
  change.name = name;
  change.dtype = read_dtype(group.get());
  change.base_digest = read_digest(group.get(), "base_digest");
  change.digest = read_digest(group.get(), "digest");
  change.starts = walk_run(group.get(), "starts", H5T_STD_U64LE);
  change.indices = walk_run(group.get(), "indices", H5T_STD_U16LE);
  change.values = walk_run(group.get(), "values", hdf5_type(change.dtype).get());
  return change;
}

/// `walk(group, name)` for each member of the one group that the file holds.
template <typename Walk>
void walk_members(hid_t file, const std::string& group_name, const Walk& walk) {
  require(child_names(file) == std::vector<std::string>{group_name},
          fmt::format("it holds something else beside /{}", group_name));
  const Hdf5Id group =
      own_hdf5(H5Gopen2(file, group_name.c_str(), H5P_DEFAULT), bad_data, fmt::format("open /{}", group_name));
  for (const std::string& name : child_names(group.get())) {
    try {
      walk(group.get(), name);
    } catch (const Error& error) {
      fail(bad_data, "/{}/{}: {}", group_name, name, error.what());
    }
  }
}

}  // namespace

WalkedFile walk_snapshot(const std::string& path) {
  const QuietHdf5 quiet;
  const Hdf5Id access = lock_free_access();
  const Hdf5Id file = own_hdf5(H5Fopen(path.c_str(), H5F_ACC_RDONLY, access.get()), bad_data, "open it");
  const auto format = read_text(file.get(), "format");
  const bool is_delta = format == snapshot_layout::delta_format_name;
  require(is_delta || format == snapshot_layout::format_name,
          "its attribute `format` is neither weightcast.snapshot nor weightcast.delta");
  const std::uint32_t version = read_format_version(file.get());
  if (version != snapshot_layout::format_version)
    fail(bad_data, "it has format version {}, this program reads {}", version, snapshot_layout::format_version);
  WalkedFile walked;
  walked.config = read_text(file.get(), "config");
  walked.digest = read_digest(file.get(), "digest");
  if (!is_delta) {
    walk_members(file.get(), "parameters",
                 [&](hid_t group, const std::string& name) { walked.datasets.push_back(walk_dataset(group, name)); });
    return walked;
  }
  walked.delta = {read_text(file.get(), "base"), read_digest(file.get(), "base_digest"), {}};
  walk_members(file.get(), "delta", [&](hid_t group, const std::string& name) {
    walked.delta->changes.push_back(walk_change(group, name));
  });
  return walked;
}

}  // namespace weightcast
