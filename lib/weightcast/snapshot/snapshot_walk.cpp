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

namespace weightcast {
namespace {

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
  Digest digest() {
    const auto first = number();
    return {first, number()};
  }
  DType dtype() {
    const auto dtype = dtype_from_name(text());
    if (!dtype) fail(ExitCode::bad_data, "the list of its datasets is damaged");
    return *dtype;
  }
  WalkedRun run() {
    const auto offset = number(), count = number();
    return {offset, count, number()};
  }
  bool empty() const { return rest_.empty(); }

 private:
  std::string_view rest_;
};

void put(std::string& message, const Digest& digest) {
  put(message, digest.first);
  put(message, digest.second);
}
void put(std::string& message, const WalkedRun& run) {
  for (const std::uint64_t number : {run.offset, run.count, run.size_bytes}) put(message, number);
}

std::string encode(const WalkedFile& file) {
  std::string message = "F";
  put(message, file.digest);
  put(message, file.config);
  put(message, file.datasets.size());
  for (const WalkedDataset& dataset : file.datasets) {
    put(message, dataset.info.name);
    put(message, name(dataset.info.dtype));
    put(message, dataset.info.shape.size());
    for (const std::uint64_t extent : dataset.info.shape) put(message, extent);
    put(message, dataset.digest);
    put(message, dataset.offset);
  }
  if (!file.delta) return message;
  put(message, file.delta->base);
  put(message, file.delta->base_digest);
  for (const WalkedChange& change : file.delta->changes) {
    put(message, change.name);
    put(message, name(change.dtype));
    put(message, change.base_digest);
    put(message, change.digest);
    for (const WalkedRun& run : {change.starts, change.indices, change.values}) put(message, run);
  }
  return message;
}

WalkedFile decode(std::string_view text) {
  Message message(text);
  WalkedFile file;
  file.digest = message.digest();
  file.config = message.text();
  for (std::uint64_t count = message.number(); count > 0; --count) {
    WalkedDataset& dataset = file.datasets.emplace_back();
    dataset.info.name = message.text();
    dataset.info.dtype = message.dtype();
    const std::uint64_t rank = message.number();
    for (std::uint64_t i = 0; i < rank; ++i) dataset.info.shape.push_back(message.number());
    dataset.digest = message.digest();
    dataset.offset = message.number();
  }
  if (message.empty()) return file;
  file.delta.emplace();
  file.delta->base = message.text();
  file.delta->base_digest = message.digest();
  while (!message.empty()) {
    WalkedChange& change = file.delta->changes.emplace_back();
    change.name = message.text();
    change.dtype = message.dtype();
    change.base_digest = message.digest();
    change.digest = message.digest();
    for (WalkedRun* run : {&change.starts, &change.indices, &change.values}) *run = message.run();
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
    throw Error(
        ExitCode::bad_data,
        fmt::format("{} is not a snapshot that can be read: {}", path, printable(error.what(), 1000)),
        "it is damaged, or the HDF5 file of another program (Keras, h5py): write one with `weightcast snapshot`");
  }
}

}  // namespace weightcast
