#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "weightcast/core/bytes.hpp"
#include "weightcast/core/function_ref.hpp"

/// In which parts and pieces a rank's bytes move: made once, with the plan, and executed as it stands by every
/// transport and every digest. Sizes are bytes. Pure.
namespace weightcast {

/// Part of one parameter as an engine rank holds it: `rows` runs of `row_bytes`, so many bytes apart in its slot and in
/// the parameter. With one row all pitches are row_bytes.
struct Shard {
  std::size_t parameter_index = 0;
  std::uint64_t parameter_offset = 0, parameter_pitch = 0;
  std::uint64_t destination_offset = 0, destination_pitch = 0;  ///< in the slot
  std::uint64_t row_bytes = 0, rows = 0;
  bool operator==(const Shard&) const = default;

  std::uint64_t size_bytes() const noexcept { return row_bytes * rows; }
  /// Whether it is one run of the parameter, of the slot.
  bool contiguous_parameter() const noexcept { return parameter_pitch == row_bytes || rows <= 1; }
  bool contiguous_destination() const noexcept { return destination_pitch == row_bytes || rows <= 1; }
};

/// One strided copy: a shard, or part of one, and where it comes from.
struct Segment : Shard {
  std::size_t from = 0;                               ///< trainer rank
  std::uint64_t source_offset = 0, source_pitch = 0;  ///< in that rank's source region; of a relay in the slot before
  bool operator==(const Segment&) const = default;

  bool contiguous_source() const noexcept { return source_pitch == row_bytes || rows <= 1; }
  /// Whether it moves as one run; else it is cut into tasks.
  bool contiguous() const noexcept { return contiguous_source() && contiguous_destination(); }
  /// Rows [first, first + count) of it.
  Segment rows_from(std::uint64_t first, std::uint64_t count) const noexcept;
};

/// On a host: what is copied and then digested, from the second-level cache. On a GPU: what one thread block copies.
inline constexpr std::uint64_t copy_block_bytes = 256 * kibibyte;
/// What one thread block digests: with 64 KiB it takes a third longer.
inline constexpr std::uint64_t digest_block_bytes = 128 * kibibyte;
/// What one warp takes of a contiguous block at a time: 16 warps' fit the GPU's cache between write and read.
inline constexpr std::uint64_t warp_run_bytes = 16 * kibibyte;

/// Walks a segment in blocks of at most `block_bytes`: any bytes where it is contiguous on all sides, else whole rows
/// (one at least). Whoever cuts, cuts by this.
class BlockCursor {
 public:
  BlockCursor() = default;
  BlockCursor(const Segment& segment, std::uint64_t block_bytes) noexcept;
  bool done() const noexcept { return left_.rows == 0; }
  const Segment& block() const noexcept { return block_; }
  void next() noexcept;

 private:
  void cut() noexcept;

  Segment left_, block_;
  std::uint64_t block_bytes_ = 1;
  bool one_run_ = false;
};

/// The blocks of a segment as GPUs take them, in order: contiguous ones as rows of warp_run_bytes, and what is left of
/// them.
void for_each_task(const Segment& segment, std::uint64_t block_bytes, FunctionRef<void(const Segment&)> take);
/// Appends them.
void append_tasks(const Segment& segment, std::uint64_t block_bytes, std::vector<Segment>& tasks);

/// Contiguous on both sides.
struct Copy {
  std::size_t from = 0;  ///< trainer rank
  std::uint64_t source_offset = 0, destination_offset = 0, size_bytes = 0;
  bool operator==(const Copy&) const = default;
};

/// Rows of a segment that is not contiguous(), for transports that send contiguous bytes only: packed where they come
/// from when they are strided there, unpacked where they go to when they are strided there.
struct PackedRows {
  std::size_t segment_index = 0;  ///< in Schedule::segments
  std::uint64_t first_row = 0, row_count = 0;
  std::uint64_t pack_offset = 0;  ///< in the pack buffer of its step
  bool operator==(const PackedRows&) const = default;
};

/// Consecutive items of a list.
struct Range {
  std::size_t first = 0, count = 0;
  bool operator==(const Range&) const = default;

  std::size_t end() const noexcept { return first + count; }
  template <typename T>
  std::span<const T> of(const std::vector<T>& list) const {
    return std::span(list).subspan(first, count);
  }
};

/// What a part is made of: consecutive parameters, or what one trainer rank brings of them.
struct Cut {
  std::size_t from = 0;  ///< trainer rank
  Range parameters;
  bool operator==(const Cut&) const = default;
};

/// What is queued, announced and digested together.
struct Part : Cut {
  Range segments;  ///< its own, in Schedule::segments
  Range copies;    ///< those that are contiguous, neighbours merged
  /// The copies once more, in Schedule::halves, where both ends can move: half of the part's bytes, with what is
  /// strided, are for the receiver to pull, the rest for the sender to push. Both empty: not worth a message.
  Range pulled, pushed;
  Range pack_steps;  ///< those that are strided at an end, as a bounded buffer takes them
  bool operator==(const Part&) const = default;
};

/// All that one trainer rank sends to a tp rank.
struct Supply {
  std::size_t from = 0;  ///< trainer rank
  Range segments;        ///< in Schedule::segments, by parameter
  Range parts;           ///< in Schedule::whole
  bool operator==(const Supply&) const = default;
};

/// All that one tp rank receives, in the order in which it turns to its trainer ranks: one after the other, and each tp
/// rank begins with another one, so that all links carry all the time. Whoever walks the parts in their order keeps it.
struct Schedule {
  std::vector<Segment> segments;  ///< by trainer rank in the order of the walk, then by parameter
  std::vector<Supply> supplies;   ///< of the trainer ranks that send anything, in the order of the walk
  std::vector<Copy> copies, halves;
  std::vector<PackedRows> packed;
  std::vector<Range> pack_steps;  ///< ranges of `packed`
  std::vector<Part> whole;        ///< the whole model, in this order
  /// Each parameter by itself: a part for each trainer rank that brings some of it, in the order of the walk; an empty
  /// one where nobody does.
  std::vector<Part> single;
  std::vector<std::size_t> first_single;  ///< of each parameter, and the end
  bool operator==(const Schedule&) const = default;

  /// The parts of a movement of these parameters, in order: all of them go in large parts, fewer one by one. A trainer
  /// rank's are those that come from it.
  std::span<const Part> parts(const Range& parameters) const {
    if (parameters.count + 1 == first_single.size()) return whole;
    const auto first = first_single.at(parameters.first);
    return std::span(single).subspan(first, first_single.at(parameters.end()) - first);
  }
  /// What comes from that trainer rank, or null.
  const Supply* supply(std::size_t from) const noexcept;
  /// Its segments of these parameters.
  std::span<const Segment> segments_of(std::size_t from, const Range& parameters) const noexcept;
};

/// Cuts what a tp rank receives from one trainer rank, `sizes` by parameter, into parts, so that one is digested, or
/// passed on, while the next is under way. A later replica waits for each, so with dp > 1 they are alike. Else each has
/// about half of what is left: few are queued, and little is left to digest when the last has arrived. The largest come
/// first.
std::vector<Range> parts_of(std::span<const std::uint64_t> sizes, std::uint64_t dp);

/// The schedule of these segments, which lie as Schedule::segments do: what comes from one trainer rank together, by
/// parameter. `cuts` are those of its parts. No pack step needs more than `pack_bytes`.
Schedule make_schedule(std::vector<Segment> segments, std::size_t parameter_count, std::span<const Cut> cuts,
                       std::uint64_t pack_bytes);
/// The cuts of the whole model: what each trainer rank brings, in the order of the segments, by parts_of().
std::vector<Cut> cuts_of(std::span<const Segment> segments, std::size_t parameter_count, std::uint64_t dp);

}  // namespace weightcast
