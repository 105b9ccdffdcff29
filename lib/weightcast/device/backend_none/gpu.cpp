#include "weightcast/device/gpu.hpp"

#include "weightcast/core/error.hpp"

namespace weightcast::gpu {
namespace {

[[noreturn]] void none() {
  throw Error(ExitCode::config, "this build has no CUDA", "build it with the preset cuda, or use --device host");
}

}  // namespace

std::string cuda_version() {
  return "not built in";
}
std::string nccl_version() {
  return "not built in";
}
int count() noexcept {
  return 0;
}
std::string why_none() {
  return "this build has no CUDA";
}
Properties properties(int) {
  none();
}
std::byte* allocate(int, std::uint64_t, const std::string&) {
  none();
}
void release(int, std::byte*) noexcept {}
IpcHandle export_memory(int, const std::byte*) {
  none();
}
std::byte* import_memory(int, const IpcHandle&) {
  none();
}
void close_import(int, std::byte*) noexcept {}
void register_host(int, std::byte*, std::uint64_t) {
  none();
}
void release_host(std::byte*) noexcept {}
void upload(int, std::byte*, const std::byte*, std::uint64_t) {
  none();
}
void download(int, std::byte*, const std::byte*, std::uint64_t) {
  none();
}
void CloseStream::operator()(void*) const noexcept {}
void CloseEvent::operator()(void*) const noexcept {}
Stream::Stream(int) {
  none();
}
void Stream::after(const Stream&) {
  none();
}
void Stream::synchronize(Deadline, const char*, FunctionRef<void()>) const {
  none();
}
Event::Event(int) {
  none();
}
void Event::record(const Stream&) {
  none();
}
bool Event::done() const {
  none();
}
void copy_strided(const CopyTask*, std::uint64_t, const std::byte*, std::byte*, const Stream&) {
  none();
}
void copy_batch(void* const*, const void* const*, const std::size_t*, std::size_t, const Stream&) {
  none();
}
void gather(const StridedElements&, std::optional<Rounding>, std::byte*, const std::byte*, const Stream&) {
  none();
}
void quantize(ScaleKind, const FloatMatrix&, const Fp8Matrix&, const Stream&) {
  none();
}
void scatter(const StridedElements&, std::byte*, const std::byte*, const Stream&) {
  none();
}
void generate(const WordGenerator&, const ParameterRows&, std::byte*, const Stream&) {
  none();
}
void compare(const WordGenerator&, const ParameterRows&, const std::byte*, std::uint64_t, std::uint64_t*,
             const Stream&) {
  none();
}
void compare(const std::byte*, const ParameterRows&, const std::byte*, std::uint64_t, std::uint64_t*, const Stream&) {
  none();
}
void digest(const DigestTask*, std::uint64_t, const std::byte*, std::uint64_t*, Share, const Stream&) {
  none();
}
void copy_and_digest(const DigestTask*, std::uint64_t, const CopySource&, std::byte*, std::uint64_t*, Share,
                     const Stream&) {
  none();
}
void mark(const std::byte*, const std::byte*, std::uint64_t, std::uint32_t*, const Stream&) {
  none();
}
std::uint64_t encode_scratch_bytes(std::uint64_t) {
  none();
}
void encode(const DeltaRuns&, const std::uint32_t*, const std::byte*, std::uint64_t*, DeltaEntry*, std::uint64_t,
            std::byte*, const Stream&) {
  none();
}
void check_delta(const DeltaRuns&, const std::uint64_t*, const DeltaEntry*, std::uint64_t, std::uint32_t*,
                 const Stream&) {
  none();
}
void apply_delta(const DeltaRuns&, const std::uint64_t*, DeltaEntry*, bool, std::byte*, std::uint64_t*,
                 const std::uint32_t*, const Stream&) {
  none();
}
void check_starts(const DeltaRuns&, const std::uint64_t*, std::uint64_t, std::uint32_t*, const Stream&) {
  none();
}
void apply_piece(const DeltaPiece&, std::byte*, std::uint64_t*, std::uint32_t*, const Stream&) {
  none();
}
void patch_and_digest(const DeltaPiece&, const std::byte*, std::byte*, std::uint64_t*, std::uint32_t*, const Stream&) {
  none();
}
void copy(std::byte*, const std::byte*, std::uint64_t, const Stream&) {
  none();
}
void zero(std::byte*, std::uint64_t, const Stream&) {
  none();
}
void fetch(std::byte*, const std::byte*, std::uint64_t, const Stream&) {
  none();
}
std::byte* allocate_pinned(int, std::uint64_t) {
  none();
}
void release_pinned(std::byte*) noexcept {}
std::uint64_t allocations() noexcept {
  return 0;
}

}  // namespace weightcast::gpu
