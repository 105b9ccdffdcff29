#include "weightcast/plan/schedule.hpp"

#include <functional>
#include <utility>

#include "weightcast/core/error.hpp"

namespace weightcast {
namespace {

// Less than this is not worth a wait of the next replica, and is digested in the time that its agreement takes.
constexpr std::uint64_t smallest_part_bytes = 64 * mebibyte;
// What a later replica is behind by, at most; and of so many parts the waits for each cost little.
constexpr std::uint64_t passed_on_bytes = 256 * mebibyte, passed_on_parts = 64;
constexpr std::uint64_t pack_alignment_bytes = 256;  // of every segment in a pack buffer
// Halves of large parts meet between two pages of a GPU: a copy engine pays for each that it touches.
constexpr std::uint64_t page_bytes = 2 * mebibyte;

/// As one run.
void flatten(Segment& segment, std::uint64_t size_bytes) noexcept {
  segment.rows = 1;
  segment.row_bytes = segment.source_pitch = segment.destination_pitch = segment.parameter_pitch = size_bytes;
}

/// Skips the first bytes of a run.
void advance(Segment& segment, std::uint64_t bytes) noexcept {
  segment.source_offset += bytes;
  segment.destination_offset += bytes;
  segment.parameter_offset += bytes;
}

std::span<const Segment> of_parameters(std::span<const Segment> sorted, const Range& parameters) noexcept {
  const auto begin = std::ranges::lower_bound(sorted, parameters.first, {}, &Segment::parameter_index);
  return {begin, std::ranges::lower_bound(begin, sorted.end(), parameters.end(), {}, &Segment::parameter_index)};
}

class Writer {
 public:
  Writer(Schedule& schedule, std::uint64_t pack_bytes) : schedule_(schedule), pack_bytes_(pack_bytes) {}

  /// `halved`: both ends may move it, whatever its size.
  Part write(const Supply& supply, const Range& parameters, bool halved) {
    Part part;
    part.from = supply.from;
    part.parameters = parameters;
    const auto segments = of_parameters(supply.segments.of(schedule_.segments), parameters);
    part.segments = {static_cast<std::size_t>(segments.data() - schedule_.segments.data()), segments.size()};
    part.copies.first = schedule_.copies.size();
    part.pack_steps.first = schedule_.pack_steps.size();
    first_packed_ = schedule_.packed.size();
    packed_bytes_ = 0;
    for (auto i = part.segments.first; i < part.segments.end(); ++i) {
      const auto& segment = schedule_.segments[i];
      if (segment.contiguous()) {
        copy(segment, part.copies.first);
      } else {
        pack(i);
      }
    }
    end_step();
    part.copies.count = schedule_.copies.size() - part.copies.first;
    part.pack_steps.count = schedule_.pack_steps.size() - part.pack_steps.first;
    halve(part, halved);
    return part;
  }

 private:
  void copy(const Segment& segment, std::size_t first_of_part) {
    const Copy next{segment.from, segment.source_offset, segment.destination_offset, segment.size_bytes()};
    if (schedule_.copies.size() > first_of_part) {
      auto& last = schedule_.copies.back();
      if (last.source_offset + last.size_bytes == next.source_offset &&
          last.destination_offset + last.size_bytes == next.destination_offset) {
        last.size_bytes += next.size_bytes;
        return;
      }
    }
    schedule_.copies.push_back(next);
  }

  void halve(Part& part, bool always) {
    part.pulled.first = part.pushed.first = schedule_.halves.size();
    std::uint64_t bytes = 0, strided = 0;
    for (const auto& segment : part.segments.of(schedule_.segments)) {
      bytes += segment.size_bytes();
      if (!segment.contiguous()) strided += segment.size_bytes();
    }
    const bool large = bytes >= smallest_part_bytes;
    if ((!always && !large) || strided >= bytes / 2) return;
    auto to_pull = bytes / 2 - strided;
    for (const auto& copy : part.copies.of(schedule_.copies)) {
      auto head = std::min(copy.size_bytes, to_pull);
      if (head < copy.size_bytes)
        head -= std::min(head, (copy.destination_offset + head) % (large ? page_bytes : pack_alignment_bytes));
      if (head != 0) {
        schedule_.halves.push_back({copy.from, copy.source_offset, copy.destination_offset, head});
        ++part.pulled.count;
      }
      to_pull -= head;
      if (head == copy.size_bytes) continue;
      to_pull = 0;
      schedule_.halves.push_back(
          {copy.from, copy.source_offset + head, copy.destination_offset + head, copy.size_bytes - head});
      ++part.pushed.count;
    }
    part.pushed.first = part.pulled.end();
  }

  void pack(std::size_t index) {
    const auto& segment = schedule_.segments[index];
    WEIGHTCAST_EXPECTS(segment.row_bytes <= pack_bytes_);
    for (std::uint64_t row = 0; row < segment.rows;) {
      const auto rows = std::min((pack_bytes_ - packed_bytes_) / segment.row_bytes, segment.rows - row);
      if (rows == 0) {
        end_step();
        continue;
      }
      schedule_.packed.push_back({index, row, rows, packed_bytes_});
      row += rows;
      packed_bytes_ = std::min(pack_bytes_, round_up(packed_bytes_ + rows * segment.row_bytes, pack_alignment_bytes));
    }
  }

  void end_step() {
    const auto count = schedule_.packed.size() - first_packed_;
    if (count != 0) schedule_.pack_steps.push_back({first_packed_, count});
    first_packed_ = schedule_.packed.size();
    packed_bytes_ = 0;
  }

  Schedule& schedule_;
  std::uint64_t pack_bytes_, packed_bytes_ = 0;
  std::size_t first_packed_ = 0;
};

}  // namespace

Segment Segment::rows_from(std::uint64_t first, std::uint64_t count) const noexcept {
  auto part = *this;
  part.source_offset += first * source_pitch;
  part.destination_offset += first * destination_pitch;
  part.parameter_offset += first * parameter_pitch;
  part.rows = count;
  if (count == 1) flatten(part, row_bytes);
  return part;
}

BlockCursor::BlockCursor(const Segment& segment, std::uint64_t bytes) noexcept
    : left_(segment),
      block_bytes_(bytes),
      one_run_(segment.contiguous() && segment.contiguous_parameter() && segment.size_bytes() != 0) {
  if (one_run_) flatten(left_, segment.size_bytes());
  cut();
}

void BlockCursor::next() noexcept {
  if (left_.size_bytes() == block_.size_bytes()) {
    left_.rows = 0;
  } else if (one_run_) {
    advance(left_, block_.row_bytes);
    left_.row_bytes -= block_.row_bytes;
  } else {
    left_ = left_.rows_from(block_.rows, left_.rows - block_.rows);
  }
  cut();
}

void BlockCursor::cut() noexcept {
  if (left_.rows == 0) return;
  if (one_run_) {
    block_ = left_;
    flatten(block_, std::min(block_bytes_, left_.row_bytes));
  } else {
    block_ = left_.rows_from(0, std::clamp<std::uint64_t>(block_bytes_ / left_.row_bytes, 1, left_.rows));
  }
}

void for_each_task(const Segment& segment, std::uint64_t block_bytes, FunctionRef<void(const Segment&)> take) {
  for (BlockCursor cursor(segment, block_bytes); !cursor.done(); cursor.next()) {
    auto task = cursor.block();
    if (task.rows != 1 || task.row_bytes <= warp_run_bytes) {
      take(task);
      continue;
    }
    const auto runs = task.row_bytes / warp_run_bytes, rest = task.row_bytes % warp_run_bytes;
    flatten(task, warp_run_bytes);
    task.rows = runs;
    take(task);
    if (rest == 0) continue;
    advance(task, runs * warp_run_bytes);
    flatten(task, rest);
    take(task);
  }
}

void append_tasks(const Segment& segment, std::uint64_t block_bytes, std::vector<Segment>& tasks) {
  for_each_task(segment, block_bytes, [&](const Segment& task) { tasks.push_back(task); });
}

const Supply* Schedule::supply(std::size_t from) const noexcept {
  const auto found = std::ranges::find(supplies, from, &Supply::from);
  return found == supplies.end() ? nullptr : &*found;
}

std::span<const Segment> Schedule::segments_of(std::size_t from, const Range& parameters) const noexcept {
  const auto* const sent = supply(from);
  if (sent == nullptr) return {segments.data(), 0};
  return of_parameters(sent->segments.of(segments), parameters);
}

std::vector<Range> parts_of(std::span<const std::uint64_t> sizes, std::uint64_t dp) {
  std::uint64_t left = 0;
  for (const auto size : sizes) left += size;
  const auto smallest = std::min(smallest_part_bytes, left / 8);
  const auto passed_on = std::clamp(left / passed_on_parts, smallest, passed_on_bytes);
  // What is larger than that cannot be cut, so it must not come last: the walk begins with it.
  const auto large = std::find_if(sizes.rbegin(), sizes.rend(), [&](std::uint64_t size) { return size > smallest; });
  const std::size_t count = sizes.size(),
                    begin = large == sizes.rend() ? 0 : static_cast<std::size_t>(sizes.rend() - large - 1);
  std::vector<std::pair<std::uint64_t, Range>> parts;  // with their sizes
  Range part{begin, 0};
  std::uint64_t bytes = 0;
  for (std::size_t walked = 1; walked <= count; ++walked) {
    ++part.count;
    bytes += sizes[part.end() - 1];
    const auto target = dp > 1 ? passed_on : std::max(left / 2, smallest);
    if (bytes < target && part.end() < count && walked < count) continue;
    parts.emplace_back(bytes, part);
    left -= bytes;
    part = {part.end() % count, 0};
    bytes = 0;
  }
  std::ranges::stable_sort(parts, std::greater(), [](const auto& sized) { return sized.first; });
  std::vector<Range> result;
  for (const auto& sized : parts) result.push_back(sized.second);
  return result;
}

std::vector<Cut> cuts_of(std::span<const Segment> segments, std::size_t parameter_count, std::uint64_t dp) {
  std::vector<Cut> cuts;
  std::vector<std::uint64_t> sizes(parameter_count);
  for (auto next = segments.begin(); next != segments.end();) {
    const auto from = next->from;
    std::ranges::fill(sizes, 0);
    for (; next != segments.end() && next->from == from; ++next) sizes[next->parameter_index] += next->size_bytes();
    for (const auto& part : parts_of(sizes, dp)) cuts.push_back({from, part});
  }
  return cuts;
}

Schedule make_schedule(std::vector<Segment> segments, std::size_t parameter_count, std::span<const Cut> cuts,
                       std::uint64_t pack_bytes) {
  Schedule schedule;
  schedule.segments = std::move(segments);
  for (std::size_t i = 0; i < schedule.segments.size(); ++i) {
    const auto from = schedule.segments[i].from;
    if (schedule.supplies.empty() || schedule.supplies.back().from != from)
      schedule.supplies.push_back({from, {i, 0}, {}});
    ++schedule.supplies.back().segments.count;
  }
  Writer writer(schedule, pack_bytes);
  for (std::size_t p = 0; p < parameter_count; ++p) {
    const Range one{p, 1};
    schedule.first_single.push_back(schedule.single.size());
    for (const auto& supply : schedule.supplies) {
      if (!of_parameters(supply.segments.of(schedule.segments), one).empty())
        schedule.single.push_back(writer.write(supply, one, false));
    }
    if (schedule.first_single.back() < schedule.single.size()) continue;
    const auto nothing = schedule.supplies.empty() ? Supply{} : schedule.supplies.front();
    schedule.single.push_back(writer.write(nothing, one, false));
  }
  schedule.first_single.push_back(schedule.single.size());
  auto next = cuts.begin();
  for (auto& supply : schedule.supplies) {
    supply.parts.first = schedule.whole.size();
    for (; next != cuts.end() && next->from == supply.from; ++next)
      schedule.whole.push_back(writer.write(supply, next->parameters, true));
    supply.parts.count = schedule.whole.size() - supply.parts.first;
  }
  WEIGHTCAST_EXPECTS(next == cuts.end());  // in the order of the segments
  return schedule;
}

}  // namespace weightcast
