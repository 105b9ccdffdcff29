#include "weightcast/snapshot/snapshot_walk.hpp"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "weightcast/core/bytes.hpp"
#include "weightcast/core/error.hpp"
#include "weightcast/core/file.hpp"
#include "weightcast/snapshot/hdf5_handle.hpp"
#include "weightcast/snapshot/snapshot_layout.hpp"

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

Digest read_digest(hid_t object) {
  const auto digest = Digest::from_hex(read_text(object, "digest"));
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

WalkedDataset walk_dataset(hid_t group, const std::string& name) {
  const Hdf5Id object = own_hdf5(H5Oopen(group, name.c_str(), H5P_DEFAULT), bad_data, "open an object");
  require(H5Iget_type(object.get()) == H5I_DATASET, "it is not a dataset");
  check_storage(object.get());
  WalkedDataset dataset;
  dataset.info.name = name;
  const auto dtype = dtype_from_name(read_text(object.get(), "dtype"));
  require(dtype.has_value(), "its dtype is unknown");
  dataset.info.dtype = *dtype;
  const Hdf5Id type = own_hdf5(H5Dget_type(object.get()), bad_data, "read a type");
  require(H5Tequal(type.get(), hdf5_type(*dtype).get()) > 0, "its HDF5 type is not that of its dtype");
  dataset.info.shape = read_shape(object.get());
  const auto size = dataset.info.size_bytes();
  require(size.has_value() && *size == H5Dget_storage_size(object.get()), "its storage has not the size of its shape");
  dataset.digest = read_digest(object.get());
  const haddr_t offset = *size == 0 ? 0 : H5Dget_offset(object.get());
  require(offset != HADDR_UNDEF, "it has no data");
  dataset.offset = offset;
  return dataset;
}

/// Walks the file in this process. Error(bad_data) for what format.md refuses; may crash on malformed files.
WalkedFile walk_snapshot(const std::string& path) {
  const QuietHdf5 quiet;
  const Hdf5Id access = lock_free_access();
  const Hdf5Id file = own_hdf5(H5Fopen(path.c_str(), H5F_ACC_RDONLY, access.get()), bad_data, "open it");
  require(read_text(file.get(), "format") == snapshot_layout::format_name,
          "its attribute `format` is not weightcast.snapshot");
  const std::uint32_t version = read_format_version(file.get());
  if (version != snapshot_layout::format_version)
    fail(bad_data, "it has format version {}, this program reads {}", version, snapshot_layout::format_version);
  WalkedFile walked;
  walked.digest = read_digest(file.get());
  require(child_names(file.get()) == std::vector<std::string>{"parameters"},
          "it holds something else beside /parameters");
  const Hdf5Id group = own_hdf5(H5Gopen2(file.get(), "parameters", H5P_DEFAULT), bad_data, "open /parameters");
  for (const std::string& name : child_names(group.get())) {
    try {
      walked.datasets.push_back(walk_dataset(group.get(), name));
    } catch (const Error& error) {
      fail(bad_data, "/parameters/{}: {}", name, error.what());
    }
  }
  return walked;
}

// The child sends one message through a pipe: 'F' and the walked file, or 'E' and the text of an error; anything else,
// or nothing, means that it died. All integers are u64 of this machine; texts are preceded by their length.

constexpr rlim_t extra_memory_bytes = gibibyte, processor_limit_s = 20;

void put(std::string& message, std::uint64_t value) {
  message.append(reinterpret_cast<const char*>(&value), sizeof value);
}
void put(std::string& message, std::string_view text) {
  put(message, text.size());
  message.append(text);
}

/// Takes a message apart; throws when it is too short.
class Message {
 public:
  explicit Message(std::string_view rest) : rest_(rest) {}
  std::string_view bytes(std::uint64_t count) {
    if (count > rest_.size()) fail(ExitCode::bad_data, "the list of its datasets is incomplete");
    const auto taken = rest_.substr(0, count);
    rest_.remove_prefix(count);
    return taken;
  }
  std::uint64_t number() {
    std::uint64_t value = 0;
    std::memcpy(&value, bytes(sizeof value).data(), sizeof value);
    return value;
  }
  std::string text() { return std::string(bytes(number())); }
  bool empty() const { return rest_.empty(); }

 private:
  std::string_view rest_;
};

std::string encode(const WalkedFile& file) {
  std::string message = "F";
  put(message, file.digest.first);
  put(message, file.digest.second);
  for (const WalkedDataset& dataset : file.datasets) {
    put(message, dataset.info.name);
    put(message, name(dataset.info.dtype));
    put(message, dataset.info.shape.size());
    for (const std::uint64_t extent : dataset.info.shape) put(message, extent);
    put(message, dataset.digest.first);
    put(message, dataset.digest.second);
    put(message, dataset.offset);
  }
  return message;
}

WalkedFile decode(std::string_view text) {
  Message message(text);
  WalkedFile file;
  file.digest.first = message.number();
  file.digest.second = message.number();
  while (!message.empty()) {
    WalkedDataset& dataset = file.datasets.emplace_back();
    dataset.info.name = message.text();
    const auto dtype = dtype_from_name(message.text());
    if (!dtype) fail(ExitCode::bad_data, "the list of its datasets is damaged");
    dataset.info.dtype = *dtype;
    const std::uint64_t rank = message.number();
    for (std::uint64_t i = 0; i < rank; ++i) dataset.info.shape.push_back(message.number());
    dataset.digest.first = message.number();
    dataset.digest.second = message.number();
    dataset.offset = message.number();
  }
  return file;
}

void limit(__rlimit_resource_t resource, rlim_t value) noexcept {
  const struct rlimit limits { value, value };
  ::setrlimit(resource, &limits);
}

/// Pages that this process has mapped, as bytes: the child inherits them, so its limit must lie above.
rlim_t mapped_bytes() noexcept {
  const UniqueFd fd(::open("/proc/self/statm", O_RDONLY | O_CLOEXEC));
  std::array<char, 64> text{};
  if (!fd || ::read(fd.get(), text.data(), text.size() - 1) <= 0) return 0;
  return std::strtoull(text.data(), nullptr, 10) * static_cast<rlim_t>(::sysconf(_SC_PAGESIZE));
}

[[noreturn]] void run_child(const std::string& path, int pipe) noexcept {
  limit(RLIMIT_AS, mapped_bytes() + extra_memory_bytes);
  limit(RLIMIT_CPU, processor_limit_s);
  limit(RLIMIT_CORE, 0);
  limit(RLIMIT_FSIZE, 0);
  const int nowhere = ::open("/dev/null", O_WRONLY | O_CLOEXEC);
  ::dup2(nowhere, STDERR_FILENO);  // what the C library has to say of a crash is of no use to anybody
  std::string message;
  try {
    message = encode(walk_snapshot(path));
  } catch (...) {
    message = std::string("E") + current_error().what();
  }
  for (std::string_view left = message; !left.empty();) {
    const ssize_t count = ::write(pipe, left.data(), left.size());
    if (count <= 0) ::_exit(1);
    left.remove_prefix(static_cast<std::size_t>(count));
  }
  ::_exit(0);  // without the exit handlers of MPI and HDF5, which belong to the parent
}

std::string read_all(int fd) {
  std::string text;
  std::array<char, 65536> part;
  while (true) {
    const ssize_t count = ::read(fd, part.data(), part.size());
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return text;
    text.append(part.data(), static_cast<std::size_t>(count));
  }
}

}  // namespace

WalkedFile walk_snapshot_apart(const std::string& path) {
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) fail(ExitCode::unavailable, "cannot make a pipe: {}", std::strerror(errno));
  const UniqueFd reader(ends[0]);
  UniqueFd writer(ends[1]);
  const pid_t child = ::fork();
  if (child < 0) fail(ExitCode::unavailable, "cannot start a process: {}", std::strerror(errno));
  if (child == 0) run_child(path, writer.get());
  writer.reset();
  const std::string message = read_all(reader.get());
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  try {
    if (WIFSIGNALED(status)) fail(ExitCode::bad_data, "reading its structure ended with signal {}", WTERMSIG(status));
    if (message.empty() || message[0] == 'E')
      fail(ExitCode::bad_data, "{}", message.empty() ? "no answer" : message.substr(1));
    return decode(std::string_view(message).substr(1));
  } catch (const Error& error) {
    throw Error(ExitCode::bad_data,
                fmt::format("{} is not a snapshot that can be read: {}", path, printable(error.what(), 1000)),
                "the file is damaged or of another kind: write it again with `weightcast snapshot`");
  }
}

}  // namespace weightcast
