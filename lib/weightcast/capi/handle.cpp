#include "weightcast/capi/handle.hpp"

#include <algorithm>
#include <array>
#include <limits>

#include "weightcast/comm/mpi_library.hpp"
#include "weightcast/core/bytes.hpp"
#include "weightcast/device/gpu.hpp"

namespace weightcast {
namespace {

thread_local std::string last_error;
bool initialised_here = false;

/// `text` with the names that options of the program have in wc_options.
std::string in_words_of_c(std::string text) {
  constexpr std::array<std::pair<std::string_view, std::string_view>, 11> words{{{"--timeout", "timeout_s"},
                                                                                 {"--quantize", "quantize"},
                                                                                 {"--ep", "expert_parallel"},
                                                                                 {"--delta-limit", "delta_limit"},
                                                                                 {"--trainers", "trainers"},
                                                                                 {"--transport", "transport"},
                                                                                 {"--commit in-place", "slots = 1"},
                                                                                 {"--gpus", "device"},
                                                                                 {"--device host", "memory = WC_HOST"},
                                                                                 {"--tp", "tp"},
                                                                                 {"--dp", "dp"}}};
  for (const auto& [option, member] : words) {
    for (std::size_t at = 0; (at = text.find(option, at)) != text.npos; at += member.size())
      text.replace(at, option.size(), member);
  }
  return text;
}

std::string text_of(const Error& error) {
  const auto& origin = error.origin();
  std::string text = error.what();
  if (origin.rank >= 0 && !text.starts_with("rank")) {
    text = fmt::format("rank {}{}{}, stage {}: {}", origin.rank, origin.host.empty() ? "" : " on ", origin.host,
                       origin.stage, text);
  }
  return error.hint().empty() ? text : fmt::format("{}\n{}", text, in_words_of_c(error.hint()));
}

/// Notes the exception in flight. Call inside a catch block.
Error note_error() {
  auto error = current_error();
  last_error = text_of(error);
  return error;
}

/// Strides in bytes as a wc_tensor has them; none when it is dense.
std::vector<std::int64_t> strides_of(const wc_tensor& tensor, DType dtype) {
  const auto name = printable(tensor.name);
  if (tensor.strides_bytes == nullptr && (tensor.row_pitch_bytes == 0 || tensor.dimensions == 0)) return {};
  if (tensor.strides_bytes != nullptr && tensor.row_pitch_bytes != 0)
    fail(ExitCode::usage, "{} has both strides and a row pitch", name);
  if (bits(dtype) % 8 != 0) fail(ExitCode::usage, "{} has elements smaller than a byte: they must be dense", name);
  if (tensor.strides_bytes != nullptr) return {tensor.strides_bytes, tensor.strides_bytes + tensor.dimensions};
  std::vector<std::int64_t> strides(tensor.dimensions);
  std::optional<std::uint64_t> next = element_bytes(dtype);
  for (auto i = tensor.dimensions; i-- > 1;) {
    strides[i] = static_cast<std::int64_t>(*next);
    next = checked_multiply(*next, tensor.shape[i]);
    if (!next || *next > std::numeric_limits<std::int64_t>::max())
      fail(ExitCode::usage, "{} does not fit the address space", name);
  }
  if (tensor.row_pitch_bytes < *next)
    fail(ExitCode::usage, "{} has rows of {} bytes, {} apart", name, *next, tensor.row_pitch_bytes);
  if (tensor.row_pitch_bytes > std::numeric_limits<std::int64_t>::max())
    fail(ExitCode::usage, "{} does not fit the address space", name);
  strides.front() = static_cast<std::int64_t>(tensor.row_pitch_bytes);
  return strides;
}

/// All that a tensor of the caller's says; its memory is not looked at.
ForeignTensor read_description(const wc_tensor& tensor) {
  const auto info = read_info(tensor);
  ForeignTensor result{info, static_cast<std::byte*>(tensor.data), placement_of(tensor.memory, tensor.device),
                       strides_of(tensor, info.dtype)};
  if ((tensor.offsets == nullptr) != (tensor.full_shape == nullptr))
    fail(ExitCode::usage, "{} has offsets or a full shape, but not both", printable(info.name));
  if (tensor.offsets == nullptr) return result;
  result.offsets.assign(tensor.offsets, tensor.offsets + tensor.dimensions);
  result.full_shape.assign(tensor.full_shape, tensor.full_shape + tensor.dimensions);
  return result;
}

void expect_in_memory(const ForeignTensor& tensor) {
  const auto& info = tensor.info;
  const auto size_bytes = info.size_bytes();
  const auto too_large = [&] {
    fail(ExitCode::usage, "{} does not fit the address space: {}", printable(info.name), info.describe());
  };
  if (!size_bytes || *size_bytes > std::numeric_limits<std::int64_t>::max()) return too_large();
  if (*size_bytes == 0) return;
  if (tensor.data == nullptr) fail(ExitCode::usage, "{} has no data", printable(info.name));
  std::optional<Reach> reach = Reach{0, static_cast<std::int64_t>(*size_bytes)};
  if (!tensor.strides_bytes.empty()) reach = reach_of(info.shape, tensor.strides_bytes, element_bytes(info.dtype));
  const auto address = reinterpret_cast<std::uintptr_t>(tensor.data);
  if (!reach || address < 0 - static_cast<std::uint64_t>(reach->begin) ||
      !checked_add(address, static_cast<std::uint64_t>(reach->end)))
    too_large();
}

}  // namespace

void expect_mpi() {
  const auto state = mpi_state();
  if (state == MpiState::single_threaded)
    throw Error(ExitCode::config, "MPI was initialised without threads",
                "initialise it with MPI_THREAD_SERIALIZED or MPI_THREAD_MULTIPLE");
  if (state != MpiState::running) {
    throw Error(ExitCode::config,
                state == MpiState::finalized
                    ? "MPI is finalized already"
                    : fmt::format("MPI is not initialised (the library here is {})", wc_mpi_library()),
                "call wc_init() first; when your program has initialised MPI, it uses another MPI library than this");
  }
}

Placement placement_of(int memory, int device) {
  if (memory == WC_HOST) return {};
  if (memory == WC_CUDA) return {MemoryKind::cuda, device};
  throw Error(ExitCode::usage, fmt::format("there is no memory of kind {}", memory), "it is WC_HOST or WC_CUDA");
}

int guarded(FunctionRef<void()> body) noexcept {
  try {
    try {
      body();
      return WC_OK;
    } catch (...) {
      return static_cast<int>(note_error().code());
    }
  } catch (...) {  // no memory for the text
    last_error.clear();
    return WC_UNAVAILABLE;
  }
}

void unless_lost(std::optional<Error>& lost, FunctionRef<void()> body) {
  if (lost) throw Error(lost->code(), fmt::format("this group has lost a rank: {}", lost->what()), lost->hint());
  try {
    body();
  } catch (const Error& error) {
    if (error.reach() == Error::Reach::lost) lost = error;
    throw;
  }
}

void expect_argument(const void* argument, std::string_view what) {
  if (argument == nullptr) fail(ExitCode::usage, "{} may not be NULL", what);
}

void expect_size(std::size_t given, std::size_t expected, std::string_view type) {
  if (given == expected) return;
  throw Error(ExitCode::usage, fmt::format("a {} has size {}, not {}", type, given, expected),
              "initialise it with its _INIT macro, of the header that belongs to this library");
}

TensorInfo read_info(const wc_tensor& tensor) {
  constexpr std::size_t dimension_limit = 8;
  expect_argument(tensor.name, "the name of a tensor");
  expect_argument(tensor.dtype, "the dtype of a tensor");
  if (tensor.dimensions > 0) expect_argument(tensor.shape, "the shape of a tensor");
  const auto dtype = dtype_from_name(tensor.dtype);
  if (!dtype) {
    throw Error(ExitCode::usage,
                fmt::format("{} has the unknown dtype {}", printable(tensor.name), printable(tensor.dtype)),
                "dtypes are written as in safetensors: BF16, F16, F32, ...");
  }
  if (tensor.dimensions > dimension_limit)
    fail(ExitCode::usage, "{} has {} dimensions", printable(tensor.name), tensor.dimensions);
  return {tensor.name, *dtype, {tensor.shape, tensor.shape + tensor.dimensions}};
}

ForeignTensor read_tensor(const wc_tensor& given) {
  auto result = read_description(read_struct(given, earlier_tensor_sizes, "wc_tensor"));
  expect_in_memory(result);
  return result;
}

std::vector<ForeignTensor> read_table(const wc_tensor* tensors, std::size_t count, Memory memory) {
  if (count > 0) expect_argument(tensors, "the table of tensors");
  std::vector<ForeignTensor> table;
  table.reserve(count);
  const auto* const first = reinterpret_cast<const std::byte*>(tensors);
  for (std::size_t i = 0; i < count; ++i) {
    const auto& tensor = *reinterpret_cast<const wc_tensor*>(first + i * tensors->size);
    if (tensor.size != tensors->size) fail(ExitCode::usage, "the tensors of a table have different sizes");
    table.push_back(memory == Memory::used ? read_tensor(tensor)
                                           : read_description(read_struct(tensor, earlier_tensor_sizes, "wc_tensor")));
  }
  return table;
}

std::vector<ForeignTensor> read_destinations(const wc_tensor* tensors, std::size_t count) {
  expect_argument(tensors, "the table of tensors");
  auto table = read_table(tensors, count);
  for (const auto& tensor : table) {
    if (!tensor.full_shape.empty())
      fail(ExitCode::usage, "{} says where it lies in its parameter: a destination is this rank's shard",
           printable(tensor.info.name));
  }
  return table;
}

TrainingTensor training_tensor(const ForeignTensor& tensor) {
  return {tensor.info, tensor.data, tensor.placement, tensor.strides_bytes, tensor.offsets, tensor.full_shape};
}

void expect_update(const wc_update* update) {
  if (update != nullptr) read_struct(*update, earlier_update_sizes, "wc_update");
}

void write_update(wc_update* update, const UpdateResult& result, double local_s) {
  if (update == nullptr) return;
  wc_update written{.size = update->size,
                    .version = result.version,
                    .closed = 0,
                    .digest = {},
                    .local_s = local_s,
                    .prepare_s = result.prepare_s,
                    .stage_s = result.stage_s,
                    .verify_s = result.verify_s,
                    .vote_s = result.vote_s,
                    .commit_s = result.commit_s,
                    .egress_bytes = result.egress_bytes,
                    .payload = result.payload == Payload::delta ? WC_DELTA : WC_DENSE,
                    .shipped_bytes = result.shipped_bytes,
                    .changed_elements = result.changed_elements,
                    .diff_s = result.diff_s,
                    .apply_s = result.apply_s};
  if (result.digest) result.digest->hex().copy(written.digest, sizeof written.digest - 1);
  std::memcpy(update, &written, update->size);
}

}  // namespace weightcast

using weightcast::guarded;

const char* wc_version(void) {
  return WEIGHTCAST_VERSION;
}

const char* wc_mpi_library(void) {
  static const auto text = weightcast::mpi_library();
  return text.c_str();
}

const char* wc_gpu_libraries(void) {
  static const auto text =
      fmt::format("CUDA {}, NCCL {}", weightcast::gpu::cuda_version(), weightcast::gpu::nccl_version());
  return text.c_str();
}

const char* wc_last_error(void) {
  return weightcast::last_error.c_str();
}

int wc_init(void) {
  return guarded([] {
    if (weightcast::mpi_state() == weightcast::MpiState::not_begun) {
      weightcast::initialise_mpi(nullptr, nullptr);
      weightcast::initialised_here = true;
    }
    weightcast::expect_mpi();
  });
}

int wc_finalize(void) {
  return guarded([] {
    if (weightcast::initialised_here && weightcast::inside_mpi()) weightcast::finalize_mpi();
  });
}
