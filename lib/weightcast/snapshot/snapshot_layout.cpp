#include "weightcast/snapshot/snapshot_layout.hpp"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>

#include "weightcast/core/bytes.hpp"
#include "weightcast/core/error.hpp"
#include "weightcast/core/file.hpp"
#include "weightcast/core/strict_json.hpp"
#include "weightcast/model/model_config.hpp"

namespace weightcast::snapshot_layout {
namespace {

constexpr hsize_t align_from_bytes = 64 * kibibyte, align_to_bytes = 4 * kibibyte,
                  metadata_block_bytes = 256 * kibibyte;
constexpr std::uint64_t write_limit_bytes = 16 * mebibyte;
constexpr auto internal = ExitCode::internal;

std::string dataset_name(const TensorInfo& info) {
  return "/parameters/" + info.name;
}

void add_attribute(hid_t object, const char* name, hid_t type, const void* value) {
  const Hdf5Id space = own_hdf5(H5Screate(H5S_SCALAR), internal, "make a dataspace");
  const Hdf5Id attribute = own_hdf5(H5Acreate2(object, name, type, space.get(), H5P_DEFAULT, H5P_DEFAULT),
                                    ExitCode::io_error, fmt::format("make the attribute {}", name));
  check_hdf5(H5Awrite(attribute.get(), type, value), ExitCode::io_error, fmt::format("write the attribute {}", name));
}

void set_text(hid_t object, const char* name, const std::string& text) {
  const Hdf5Id attribute = own_hdf5(H5Aopen(object, name, H5P_DEFAULT), ExitCode::io_error, "open an attribute");
  const Hdf5Id type = hdf5_text_type(text.size());
  check_hdf5(H5Awrite(attribute.get(), type.get(), text.data()), ExitCode::io_error, "write an attribute");
}

template <typename Integer>
Hdf5Id make_space(const std::vector<Integer>& shape) {
  const std::vector<hsize_t> extents(shape.begin(), shape.end());
  return own_hdf5(H5Screate_simple(static_cast<int>(extents.size()), extents.data(), nullptr), internal,
                  "make a dataspace");
}

/// Rows of the matrix view that one row of a tensor's first dimension is.
std::uint64_t inner_rows(const TensorInfo& info) {
  return info.shape.size() < 3 ? 1 : matrix_of(info).rows / std::max<std::uint64_t>(info.shape[0], 1);
}

/// How many of so many rows from `row` on are a block of the tensor: whole ones of its first dimension, or some of one.
std::uint64_t rows_of_block(const TensorInfo& info, std::uint64_t row, std::uint64_t rows) {
  const auto inner = inner_rows(info), within = row % inner;
  return within == 0 && rows >= inner ? rows / inner * inner : std::min(rows, inner - within);
}

/// Where such a block begins in the tensor's dimensions, of which there are three at most, and its extents.
std::pair<std::vector<hsize_t>, std::vector<hsize_t>> block_of(const TensorInfo& info, const Slice& slice) {
  std::vector<hsize_t> start(info.shape.size(), 0), count(info.shape.begin(), info.shape.end());
  if (start.empty()) return {start, count};
  const auto inner = inner_rows(info);
  WEIGHTCAST_EXPECTS(start.size() <= 3);
  start[0] = slice.row / inner;
  count[0] = std::max<std::uint64_t>(slice.rows / inner, 1);
  if (start.size() == 3) {
    start[1] = slice.row % inner;
    count[1] = std::min(slice.rows, inner);
  }
  if (start.size() > 1) {
    start.back() = slice.column;
    count.back() = slice.columns;
  }
  return {start, count};
}

class UserBlockHandler : public JsonHandler {
 public:
  void begin_object(std::size_t /*near*/) override { ++depth_; }
  void end_object(std::size_t /*near*/) override { --depth_; }
  void key(const std::string& name, std::size_t /*near*/) override { key_ = depth_ == 1 ? name : ""; }
  void string(const std::string& value, std::size_t /*near*/) override {
    if (key_ == "schema") schema = value;
  }
  void unsigned_integer(std::uint64_t value, std::size_t /*near*/) override {
    if (key_ == "version") version = value;
  }
  std::string schema;
  std::optional<std::uint64_t> version;

 private:
  int depth_ = 0;
  std::string key_;
};

}  // namespace

bool plain_file_name(const std::string& name) {
  constexpr std::size_t longest = 255;
  return !name.empty() && name != "." && name != ".." && name.find('/') == std::string::npos &&
         name.size() <= longest && printable(name, longest) == name;
}

std::string make_user_block(const SnapshotInfo& info, std::optional<std::uint64_t> base_version) {
  nlohmann::json json = {{"schema", user_block_schema}, {"version", info.version}, {"settings", info.settings}};
  if (base_version) json["base_version"] = *base_version;
  std::string text = json.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
  if (text.size() >= user_block_bytes)
    fail(ExitCode::config, "the settings of a snapshot take {} bytes, at most {} fit", text.size(),
         user_block_bytes - 1);
  text.resize(user_block_bytes - 1, ' ');
  return text + '\n';
}

std::uint64_t parse_user_block(std::string_view text, const std::string& path) {
  UserBlockHandler handler;
  parse_strict_json(text, handler, fmt::format("the user block of {}", path));
  if (handler.schema != user_block_schema || !handler.version) {
    fail(ExitCode::bad_data, "the user block of {} is not that of a snapshot of format {}", path, format_version);
  }
  return *handler.version;
}

std::uint64_t most_bytes_of(std::uint64_t data_bytes) noexcept {
  return round_up(data_bytes, align_to_bytes) + align_to_bytes;
}

std::uint64_t most_bytes_of_empty() noexcept {
  return user_block_bytes + 4 * metadata_block_bytes;
}

std::uint64_t most_bytes(const Model& model) {
  std::uint64_t bytes = most_bytes_of_empty();
  for (const ParameterRule& rule : model.parameters)
    bytes += most_bytes_of(rule.info.size_bytes().value()) + rule.info.name.size();
  return bytes;
}

Hdf5Id create_file(const std::string& file_name, const char* format, const Model& model, const std::string& path) {
  const Hdf5Id creation = own_hdf5(H5Pcreate(H5P_FILE_CREATE), internal, "make properties");
  const Hdf5Id access = lock_free_access();
  for (const herr_t status :
       {H5Pset_userblock(creation.get(), user_block_bytes), H5Pset_obj_track_times(creation.get(), false),
        H5Pset_libver_bounds(access.get(), H5F_LIBVER_V18, H5F_LIBVER_V18),
        H5Pset_alignment(access.get(), align_from_bytes, align_to_bytes),
        H5Pset_meta_block_size(access.get(), metadata_block_bytes)}) {
    check_hdf5(status, internal, "set properties");
  }
  Hdf5Id file = own_hdf5(H5Fcreate(file_name.c_str(), H5F_ACC_TRUNC, creation.get(), access.get()),
                         ExitCode::cant_create, fmt::format("create {}", path));
  add_text(file.get(), "format", format);
  add_attribute(file.get(), "format_version", H5T_NATIVE_UINT32, &format_version);
  add_text(file.get(), "config", to_config_json(model.config, model.format));
  return file;
}

Hdf5Id create_group(hid_t place, const std::string& name) {
  const Hdf5Id properties = own_hdf5(H5Pcreate(H5P_GROUP_CREATE), internal, "make properties");
  check_hdf5(H5Pset_obj_track_times(properties.get(), false), internal, "set properties");
  return own_hdf5(H5Gcreate2(place, name.c_str(), H5P_DEFAULT, properties.get(), H5P_DEFAULT), ExitCode::io_error,
                  fmt::format("make the group {}", name));
}

Hdf5Id create_dataset(hid_t place, const std::string& name, hid_t type, const std::vector<std::uint64_t>& shape) {
  const Hdf5Id contents = own_hdf5(H5Pcreate(H5P_DATASET_CREATE), internal, "make properties");
  for (const herr_t status :
       {H5Pset_layout(contents.get(), H5D_CONTIGUOUS), H5Pset_alloc_time(contents.get(), H5D_ALLOC_TIME_EARLY),
        H5Pset_fill_time(contents.get(), H5D_FILL_TIME_NEVER), H5Pset_obj_track_times(contents.get(), false)}) {
    check_hdf5(status, internal, "set properties");
  }
  const Hdf5Id space = make_space(shape);
  return own_hdf5(H5Dcreate2(place, name.c_str(), type, space.get(), H5P_DEFAULT, contents.get(), H5P_DEFAULT),
                  ExitCode::io_error, fmt::format("make the dataset {}", name));
}

void add_text(hid_t object, const char* name, const std::string& text) {
  add_attribute(object, name, hdf5_text_type(text.size()).get(), text.data());
}

Hdf5Id create(const std::string& file_name, const Model& model, const std::string& path) {
  Hdf5Id file = create_file(file_name, format_name, model, path);
  add_text(file.get(), "digest", std::string(digest_digits, '0'));
  const Hdf5Id parameters = create_group(file.get(), "parameters");
  for (const ParameterRule& rule : model.parameters) {
    const Hdf5Id dataset =
        create_dataset(parameters.get(), rule.info.name, hdf5_type(rule.info.dtype).get(), rule.info.shape);
    add_text(dataset.get(), "dtype", std::string(name(rule.info.dtype)));
    add_text(dataset.get(), "digest", std::string(digest_digits, '0'));
  }
  return file;
}

void set_digests(hid_t file, const Model& model, std::span<const Digest> digests) {
  WEIGHTCAST_EXPECTS(digests.size() == model.parameters.size());
  for (std::size_t i = 0; i < digests.size(); ++i) {
    const Hdf5Id dataset = own_hdf5(H5Dopen2(file, dataset_name(model.parameters[i].info).c_str(), H5P_DEFAULT),
                                    ExitCode::io_error, "open a dataset");
    set_text(dataset.get(), "digest", digests[i].hex());
  }
  set_text(file, "digest", digest_of_model(model, digests).hex());
}

void reserve(const std::string& file_name, const std::string& path) {
  const UniqueFd fd(::open(file_name.c_str(), O_RDWR | O_CLOEXEC));
  struct stat status {};
  if (!fd || ::fstat(fd.get(), &status) != 0)
    fail(ExitCode::io_error, "cannot open {}: {}", file_name, std::strerror(errno));
  reserve_space(fd.get(), static_cast<std::uint64_t>(status.st_size), path);
}

void write(hid_t file, const TensorInfo& info, const Slice& slice, const std::byte* data, FunctionRef<void()> between) {
  const Hdf5Id type = hdf5_type(info.dtype);
  const Hdf5Id dataset = own_hdf5(H5Dopen2(file, dataset_name(info).c_str(), H5P_DEFAULT), ExitCode::io_error,
                                  fmt::format("open the dataset {}", info.name));
  const std::uint64_t row_bytes = slice.columns * element_bytes(info.dtype);
  const std::uint64_t step = std::max<std::uint64_t>(1, write_limit_bytes / std::max<std::uint64_t>(1, row_bytes));
  for (std::uint64_t done = 0, rows = 0; done < slice.rows; done += rows) {
    if (between) between();
    rows = rows_of_block(info, slice.row + done, std::min(step, slice.rows - done));
    const auto [start, count] = block_of(info, {slice.row + done, slice.column, rows, slice.columns});
    const Hdf5Id space = own_hdf5(H5Dget_space(dataset.get()), ExitCode::io_error, "read a dataspace");
    if (!start.empty()) {
      check_hdf5(H5Sselect_hyperslab(space.get(), H5S_SELECT_SET, start.data(), nullptr, count.data(), nullptr),
                 internal, "select rows");
    }
    const Hdf5Id memory = make_space(count);
    check_hdf5(H5Dwrite(dataset.get(), type.get(), memory.get(), space.get(), H5P_DEFAULT, data + done * row_bytes),
               ExitCode::io_error, fmt::format("write {}", info.name));
  }
}

void write_row(hid_t file, const std::string& name, hid_t type, std::uint64_t first, std::uint64_t count,
               const void* data) {
  const Hdf5Id dataset =
      own_hdf5(H5Dopen2(file, name.c_str(), H5P_DEFAULT), ExitCode::io_error, fmt::format("open {}", name));
  const std::uint64_t width = H5Tget_size(type), step = write_limit_bytes / width;
  for (std::uint64_t done = 0; done < count; done += step) {
    const hsize_t start = first + done, some = std::min(step, count - done);
    const Hdf5Id space = own_hdf5(H5Dget_space(dataset.get()), ExitCode::io_error, "read a dataspace");
    check_hdf5(H5Sselect_hyperslab(space.get(), H5S_SELECT_SET, &start, nullptr, &some, nullptr), internal,
               "select a row");
    const Hdf5Id memory = make_space(std::vector<std::uint64_t>{some});
    check_hdf5(H5Dwrite(dataset.get(), type, memory.get(), space.get(), H5P_DEFAULT,
                        static_cast<const std::byte*>(data) + done * width),
               ExitCode::io_error, fmt::format("write {}", name));
  }
}

}  // namespace weightcast::snapshot_layout
