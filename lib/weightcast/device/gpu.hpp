#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "weightcast/core/deadline.hpp"
#include "weightcast/core/function_ref.hpp"
#include "weightcast/device/delta_run.hpp"
#include "weightcast/device/elements.hpp"
#include "weightcast/device/quantize.hpp"
#include "weightcast/device/word_generator.hpp"

/// What this project needs of GPUs, without a word of CUDA. Implemented by backend_cuda; on builds without CUDA by
/// backend_none, where there are no GPUs and every other call is Error(config). GPUs are CUDA ordinals. Every call sets
/// the device that it names first; errors of the driver are Error(unavailable) with its text.
namespace weightcast::gpu {

/// "13.0", or "not built in".
std::string cuda_version();
/// "2.28.9", or "not built in".
std::string nccl_version();

/// Usable GPUs; 0 on builds and machines without any.
int count() noexcept;
/// Why count() is 0, in words.
std::string why_none();

struct Properties {
  std::string name, pci_bus_id;
  std::uint64_t free_bytes = 0, total_bytes = 0;
};
Properties properties(int gpu);

/// Device memory. allocate() is zero-filled; Error(unavailable) names `purpose`, what was needed and what is free.
std::byte* allocate(int gpu, std::uint64_t size_bytes, const std::string& purpose);
void release(int gpu, std::byte* memory) noexcept;

/// By which another process on this host maps what allocate() has given out as `memory`.
using IpcHandle = std::array<std::byte, 64>;
IpcHandle export_memory(int gpu, const std::byte* memory);
/// Maps it for access from `gpu` until close_import(). Error(unavailable) when peer access is not possible.
std::byte* import_memory(int gpu, const IpcHandle& handle);
void close_import(int gpu, std::byte* memory) noexcept;

/// Lets a GPU read and write this process's host memory, at the bus's speed, until release_host(). Error(unavailable)
/// saying why not.
void register_host(int gpu, std::byte* memory, std::uint64_t size_bytes);
void release_host(std::byte* memory) noexcept;

/// Blocking copies between host and device. Each calling thread has a stream for them, so those of several threads are
/// under way at the same time; from and to pinned memory they are as fast as the link.
void upload(int gpu, std::byte* device, const std::byte* host, std::uint64_t size_bytes);
void download(int gpu, std::byte* host, const std::byte* device, std::uint64_t size_bytes);

/// End what a backend has made on a GPU.
struct CloseStream {
  int gpu = -1;
  void operator()(void* stream) const noexcept;
};
struct CloseEvent {
  int gpu = -1;
  void operator()(void* event) const noexcept;
};

/// A queue of work on one GPU, in order. Owner; move-only. Work queued by the functions below is asynchronous.
class Stream {
 public:
  Stream() = default;
  explicit Stream(int gpu);

  int gpu() const noexcept { return stream_.get_deleter().gpu; }
  void* handle() const noexcept { return stream_.get(); }
  /// Work queued here from now on begins after all that `other` has been given so far. Allocates nothing.
  void after(const Stream& other);
  /// Waits until everything queued is done; polls. Error(deadline) naming `what`. `look` is called between two polls
  /// and may throw to give up; then the work goes on.
  void synchronize(Deadline deadline, const char* what, FunctionRef<void()> look = {}) const;

 private:
  std::unique_ptr<void, CloseStream> stream_;
  std::unique_ptr<void, CloseEvent> event_;  // marks the end of what was queued, for after()
};

/// A mark in a stream's work that can be polled. Owner; move-only.
class Event {
 public:
  explicit Event(int gpu);

  /// Marks the end of what `stream` has been given so far; may be called again when done().
  void record(const Stream& stream);
  bool done() const;

 private:
  std::unique_ptr<void, CloseEvent> event_;
};

/// One strided copy for copy_strided(): offsets from the base pointers, in bytes.
struct CopyTask {
  std::uint64_t source = 0, destination = 0, source_pitch = 0, destination_pitch = 0;
  std::uint64_t row_bytes = 0, rows = 0;
};
/// Queues `count` tasks that lie in memory of the stream's GPU at `tasks`, by one kernel; any alignment, fastest at 16
/// bytes. Source and destination may be on different GPUs with peer access. Nothing for count 0.
void copy_strided(const CopyTask* tasks, std::uint64_t count, const std::byte* source, std::byte* destination,
                  const Stream& stream);

/// Contiguous copies for copy_batch(), by copy engine: parallel arrays on the host, unchanged until the stream is done.
void copy_batch(void* const* destinations, const void* const* sources, const std::size_t* sizes, std::size_t count,
                const Stream& stream);

/// Queue the copies of a matrix's elements to a dense destination, and from a dense source, by one kernel, all on the
/// stream's GPU; everything at multiples of its element's size. A gather also rounds, then elements are `rounding`'s.
/// Nothing for count 0.
void gather(const StridedElements& elements, std::optional<Rounding> rounding, std::byte* destination,
            const std::byte* matrix, const Stream& stream);
void scatter(const StridedElements& elements, std::byte* matrix, const std::byte* source, const Stream& stream);

/// Queues the quantisation of a matrix, by one kernel that reads it once (by channel: of rows up to 64 KiB), all on the
/// stream's GPU: the bits that weightcast::quantize() gives. Elements and scales are at multiples of their size;
/// fastest where rows begin at multiples of 16 bytes, and those of the result at multiples of 8. Nothing for no
/// elements.
void quantize(ScaleKind kind, const FloatMatrix& source, const Fp8Matrix& destination, const Stream& stream);

/// Queues the making of rows, by one kernel, where they lie in memory of the stream's GPU; any alignment, fastest at 16
/// bytes. Nothing for no rows.
void generate(const WordGenerator& words, const ParameterRows& rows, std::byte* data, const Stream& stream);
/// Queue the comparison of rows that lie there with what would be made, and with what lies at `reference` on the same
/// GPU, where rows are as far apart as in the parameter. Of the bytes that differ the first, counted row after row from
/// `first` on, becomes the greater of `*difference` (on the GPU) and its complement: 0 stays where all are equal, and
/// queued on any number of streams the least number wins.
void compare(const WordGenerator& words, const ParameterRows& rows, const std::byte* data, std::uint64_t first,
             std::uint64_t* difference, const Stream& stream);
void compare(const std::byte* reference, const ParameterRows& rows, const std::byte* data, std::uint64_t first,
             std::uint64_t* difference, const Stream& stream);

/// How much of a GPU a kernel may take: all of it, or about half of its multiprocessors, which leaves room for what
/// moves weights, and reads them several times as fast as a link brings them.
enum class Share : std::uint8_t { all, half };

/// Part of a shard's digest for digest() and copy_and_digest(): rows of whole 16-byte vectors. `data` is an offset from
/// the base pointer, `offset` the byte offset of row 0 in the parameter; both pitches in bytes; `result` the index of
/// its sum. `source` is the offset of row 0 from the source pointer.
struct DigestTask {
  std::uint64_t data = 0, offset = 0, pitch = 0, parameter_pitch = 0, source = 0, source_pitch = 0;
  std::uint32_t row_bytes = 0, rows = 0, result = 0, unused = 0;
};
/// Queues the digests of tasks [0, count) at `tasks` (on the GPU): adds to results[2 * result] and results[2 * result +
/// 1] (on the GPU, see verify/digest.md). Any alignment, fastest at 16 bytes. Nothing for count 0.
void digest(const DigestTask* tasks, std::uint64_t count, const std::byte* base, std::uint64_t* results, Share share,
            const Stream& stream);
/// Where copy_and_digest() takes rows from: a task's `source` bytes from `data`, once `offset` is subtracted.
struct CopySource {
  const std::byte* data = nullptr;
  std::uint64_t offset = 0;
  /// There are F32, at a multiple of 4 bytes, twice as far apart as the elements of this type that they are rounded to.
  std::optional<NarrowFloat> rounding = {};
  /// On the GPU, or nullptr: what differs from what was at `base` before is marked there, see mark(). Then `base` and
  /// everything in the tasks is even.
  std::uint32_t* marks = nullptr;
};
/// The same, of rows that it first copies from `source` to `base`: it digests what it reads back from there. The
/// tasks' rows must not overlap. For a source in the stream's GPU's own memory: in one pass a copy's time, where a copy
/// and digest() read everything twice.
void copy_and_digest(const DigestTask* tasks, std::uint64_t count, const CopySource& source, std::byte* base,
                     std::uint64_t* results, Share share, const Stream& stream);

/// Where copy_and_digest() may leave the digests of what it writes: tasks [first_task[i], first_task[i + 1]) are those
/// of item i, and `stream` has been given what sets the sums to zero.
struct DigestTarget {
  const DigestTask* tasks = nullptr;        ///< on the GPU
  std::span<const std::size_t> first_task;  ///< by item, and the end
  std::uint64_t* sums = nullptr;            ///< on the GPU
  Stream* stream = nullptr;                 ///< given nothing else meanwhile
};

// Deltas, in the words of delta/delta.md. Pointers are on the stream's GPU.

/// The blocks of a stream.
struct DeltaRuns {
  const DeltaRun* runs = nullptr;  ///< ascending
  std::uint64_t run_count = 0, block_count = 0;
};
/// Queues the marking of what differs: bit u % 32 of marks[u / 32] is set where unit u of [0, size_bytes / 2) does;
/// others stay. Everything is even; fastest where both versions are at multiples of 16 bytes. Nothing for no bytes.
void mark(const std::byte* before, const std::byte* after, std::uint64_t size_bytes, std::uint32_t* marks,
          const Stream& stream);
/// What encode() needs beside its results, at a multiple of 8 bytes.
std::uint64_t encode_scratch_bytes(std::uint64_t block_count);
/// Queues the making of a stream: of every marked unit its entry, by block and then ascending, its bits from `source`;
/// starts[b] is the first of block b's, starts[block_count] how many there are. Entries from `capacity` on are left
/// out. marks[0] belongs to the first unit of `source`.
void encode(const DeltaRuns& runs, const std::uint32_t* marks, const std::byte* source, std::uint64_t* starts,
            DeltaEntry* entries, std::uint64_t capacity, std::byte* scratch, const Stream& stream);
/// Queues the check of a stream from elsewhere: *bad becomes 1 unless starts ascend from 0 to at most `capacity`, no
/// block has more entries than units, and the indices in each ascend and are its own. `*bad` is 0 before.
void check_delta(const DeltaRuns& runs, const std::uint64_t* starts, const DeltaEntry* entries, std::uint64_t capacity,
                 std::uint32_t* bad, const Stream& stream);
/// The same of its starts alone.
void check_starts(const DeltaRuns& runs, const std::uint64_t* starts, std::uint64_t capacity, std::uint32_t* bad,
                  const Stream& stream);
/// Queues the writing of a stream's bits to a slot; nothing when *bad is 1 by then. With `swap` entries get the bits
/// that were there. Adds the digest of the change to sums[2 * parameter_index] and the one behind it (nullptr: none),
/// from the bits that were there.
void apply_delta(const DeltaRuns& runs, const std::uint64_t* starts, DeltaEntry* entries, bool swap, std::byte* slot,
                 std::uint64_t* sums, const std::uint32_t* bad, const Stream& stream);

/// Blocks of a stream that is arriving, once its starts are good: those that are complete with its first `last`
/// entries, but not with its first `first`. With 0 none is, with every_entry all are, also those that have no entries.
/// So pieces [0, a), [a, b), ... [z, every_entry) are all blocks, each once.
struct DeltaPiece {
  DeltaRuns runs;
  const std::uint64_t* starts = nullptr;
  const DeltaEntry* entries = nullptr;
  std::uint64_t first = 0, last = 0;
  std::uint64_t blocks_about = 0;  ///< for speed: by a guess
  std::uint64_t* found = nullptr;  ///< two numbers that the work on it writes and reads
};
inline constexpr std::uint64_t every_entry = ~std::uint64_t{0};
/// Queues the writing of a piece's bits to a slot, and its check: *bad becomes 1 unless the indices in each block
/// ascend and are its own. Of those that are not, nothing is written, and when *bad is 1 by then, nothing at all. Sums
/// are apply_delta()'s.
void apply_piece(const DeltaPiece& piece, std::byte* slot, std::uint64_t* sums, std::uint32_t* bad,
                 const Stream& stream);
/// The same into another slot than that of the old bits: copies all of the blocks from `base` (they lie there as in the
/// slot), writes the new bits over it and, in the same pass, adds the digests of the blocks as they can then be read
/// back to sums[2 * parameter_index] and the one behind it (nullptr: none). Any alignment, fastest at 16 bytes and for
/// contiguous blocks: in little more than a copy's time, however much changed.
void patch_and_digest(const DeltaPiece& piece, const std::byte* base, std::byte* slot, std::uint64_t* sums,
                      std::uint32_t* bad, const Stream& stream);
/// Queues a copy within the GPU. Nothing for no bytes.
void copy(std::byte* destination, const std::byte* source, std::uint64_t size_bytes, const Stream& stream);

/// Queues zeros, and a small copy of results to pinned host memory.
void zero(std::byte* device, std::uint64_t size_bytes, const Stream& stream);
void fetch(std::byte* pinned, const std::byte* device, std::uint64_t size_bytes, const Stream& stream);
/// Pinned host memory.
std::byte* allocate_pinned(int gpu, std::uint64_t size_bytes);
void release_pinned(std::byte* memory) noexcept;

/// How often this process has called allocate() and allocate_pinned() so far.
std::uint64_t allocations() noexcept;

}  // namespace weightcast::gpu
