// How a process joins an update group: its options, its place among the ranks, and who has which weights.
#include <fmt/ranges.h>

#include <algorithm>

#include "weightcast/capi/handle.hpp"
#include "weightcast/comm/mpi_library.hpp"
#include "weightcast/core/bytes.hpp"
#include "weightcast/model/match_checkpoint.hpp"
#include "weightcast/model/scale_rules.hpp"

namespace weightcast {
namespace {

constexpr double day_s = 86400;

Communicator communicator(const wc_options& options) {
  if (options.comm_name != nullptr) {
    if (std::string_view(options.comm_name) != "world")
      throw Error(ExitCode::usage, fmt::format("no communicator is called {}", printable(options.comm_name)),
                  "the name is \"world\"; give any other communicator as `comm`");
    return Communicator::duplicate_world();
  }
  const auto comm = foreign_communicator(options.comm);
  if (!comm)
    throw Error(ExitCode::usage, fmt::format("{} is not a communicator", options.comm),
                "give what MPI_Comm_c2f() gives");
  return Communicator::duplicate(*comm);
}

GroupOptions read_options(const wc_options& options) {
  GroupOptions group;
  const auto check = [](bool good, std::string_view what) {
    if (!good) fail(ExitCode::usage, "options: {}", what);
  };
  group.placement = placement_of(options.memory, options.device);
  if (options.timeout_s != 0) group.timeout_s = options.timeout_s;
  check(group.timeout_s > 0 && group.timeout_s <= day_s, "timeout_s is not between 0 and a day");
  check(options.slots >= 0 && options.slots <= 2, "slots is not 1 or 2");
  check(options.delta_limit >= 0 && options.delta_limit <= 1,
        "delta_limit is not between 0 (everything is always sent) and 1");
  group.delta_limit = options.delta_limit;
  if (options.transport != nullptr) group.transport = options.transport;
  const std::string_view method = options.method != nullptr ? options.method : "sharded";
  check(method == "sharded" || method == "broadcast", "method is not sharded or broadcast");
  if (method == "broadcast") group.method = Method::broadcast;
  return group;
}

/// Error(config) when a rank calls what is not its to call.
void expect_role(int rank, std::uint64_t trainers, bool trainer) {
  const bool should = static_cast<std::uint64_t>(rank) < trainers;
  if (should == trainer) return;
  if (!trainer) {
    throw Error(ExitCode::config, fmt::format("wc_engine_create() on rank {}, which is the trainer's", rank),
                "engines are the ranks after the trainer's; this rank calls wc_trainer_create()");
  }
  if (trainers > 1)
    fail(ExitCode::config, "wc_trainer_create() on rank {}: trainers are ranks 0 to {} of the communicator", rank,
         trainers - 1);
  throw Error(ExitCode::config,
              fmt::format("wc_trainer_create() on rank {}: the trainer is rank 0 of the communicator", rank),
              "of several trainer ranks each says in `trainers` how many there are");
}

/// What a rank says of the source layout, as it goes round.
struct Stated {
  std::uint64_t trainers = 1, kind = 0;
  std::uint64_t parameters = 0, model_bytes = 0;  // that rectangles are counted in
};
struct StatedRectangle {
  std::uint64_t parameter_index = 0;
  Slice slice;
  bool operator==(const StatedRectangle&) const = default;
};
/// What all of them said.
struct Said {
  LayoutKind kind = LayoutKind::whole;
  std::vector<HeldRectangle> held;  // of a custom layout
};

Quantization read_quantize(const wc_options& options) {
  if (options.quantize == nullptr) return Quantization::none;
  for (const auto kind : {Quantization::none, Quantization::fp8_block, Quantization::fp8_channel}) {
    if (name(kind) == options.quantize) return kind;
  }
  throw Error(ExitCode::usage, fmt::format("options: quantize is {}", printable(options.quantize)),
              "it is none, fp8-block or fp8-channel");
}

LayoutKind read_kind(const wc_options& options) {
  const bool given = options.sources != nullptr || options.source_count > 0;
  if (options.source_layout == nullptr)
    return given ? LayoutKind::custom : options.trainers > 1 ? LayoutKind::fsdp : LayoutKind::whole;
  for (const auto kind : {LayoutKind::whole, LayoutKind::fsdp, LayoutKind::tp, LayoutKind::custom}) {
    if (name(kind) != options.source_layout) continue;
    if (given && kind != LayoutKind::custom)
      fail(ExitCode::usage, "options: sources are given, but source_layout is {}", name(kind));
    return kind;
  }
  throw Error(ExitCode::usage, fmt::format("options: no source layout is called {}", printable(options.source_layout)),
              "it is whole, fsdp, tp or custom");
}

/// The scales that come with it where it will be rounded to fp8. What is wrong with it is appended to `problems`.
std::optional<StatedRectangle> read_scales(const TrainingTensor& tensor, const StatedRectangle& matrix,
                                           const Model& model, std::vector<std::string>& problems) {
  const auto parameter = static_cast<std::size_t>(matrix.parameter_index);
  const auto scales = scales_parameter(model, parameter);
  if (!scales || !wide_of(tensor.info.dtype) || matrix.slice.empty()) return std::nullopt;
  const auto slice = scales_of(model.format.quantization, model.parameters[parameter].info, matrix.slice);
  if (slice) return StatedRectangle{*scales, *slice};
  problems.push_back(
      fmt::format("{}, which is a part of {} that share a scale", describe(tensor),
                  model.format.quantization == Quantization::fp8_block ? "blocks of 128 x 128" : "rows"));
  return std::nullopt;
}

/// The rectangle that a trainer rank will publish as this, or what is wrong with it, appended to `problems`.
std::optional<StatedRectangle> read_source(const ForeignTensor& tensor, const Model& model,
                                           std::vector<std::string>& problems) {
  const auto index = model.find(tensor.info.name);
  if (index < 0) {
    problems.push_back(fmt::format("{} is no parameter of the model", printable(tensor.info.name)));
    return std::nullopt;
  }
  const auto& parameter = model.parameters[static_cast<std::size_t>(index)].info;
  const auto slice = slice_of(parameter, training_tensor(tensor));
  if (slice) return StatedRectangle{static_cast<std::uint64_t>(index), *slice};
  problems.push_back(
      fmt::format("{}, which is no part of [{}]", describe(training_tensor(tensor)), fmt::join(parameter.shape, ", ")));
  return std::nullopt;
}

/// All of them, and the scales of those that will be rounded; a head that is tied adds nothing to its embedding.
std::vector<StatedRectangle> read_sources(const wc_options& options, const Model& model) {
  std::vector<StatedRectangle> rectangles, heads;
  std::vector<std::string> problems;
  for (const auto& tensor : read_table(options.sources, options.source_count, Memory::not_looked_at)) {
    if (is_rotary_buffer(tensor.info.name)) continue;
    const auto rectangle = read_source(tensor, model, problems);
    if (!rectangle || rectangle->slice.empty()) continue;
    const bool own_name = tensor.info.name == model.parameters[rectangle->parameter_index].info.name;
    (own_name ? rectangles : heads).push_back(*rectangle);
    if (const auto scales = read_scales(training_tensor(tensor), *rectangle, model, problems))
      rectangles.push_back(*scales);
  }
  if (!problems.empty()) {
    throw Error(ExitCode::bad_data, fmt::format("options.sources do not fit the model:\n  {}", list_lines(problems)),
                "give the tensors that will be published: Hugging Face names, and where each lies in its parameter");
  }
  for (const auto& head : heads) {
    if (std::ranges::find(rectangles, head) == rectangles.end()) rectangles.push_back(head);
  }
  return rectangles;
}

/// Everybody's word, which must be rank 0's.
void compare(const Stated& mine, const Stated& first, bool trainer) {
  const auto kind = [](const Stated& stated) { return name(static_cast<LayoutKind>(stated.kind)); };
  if (mine.trainers != first.trainers) {
    throw Error(ExitCode::config,
                fmt::format("options.trainers is {} here and {} on rank 0", mine.trainers, first.trainers),
                "start all ranks with the same options");
  }
  if (trainer && mine.kind != first.kind) {
    throw Error(ExitCode::config, fmt::format("the source layout is {} here and {} on rank 0", kind(mine), kind(first)),
                "all trainer ranks give `sources`, be it none of them, or the same source_layout");
  }
  if (first.kind == static_cast<std::uint64_t>(LayoutKind::custom) &&
      (mine.parameters != first.parameters || mine.model_bytes != first.model_bytes)) {
    throw Error(ExitCode::config,
                fmt::format("the model has {} parameters in {} bytes here, and {} in {} on rank 0", mine.parameters,
                            mine.model_bytes, first.parameters, first.model_bytes),
                "start all ranks with the same model");
  }
}

SourceLayout layout_of(const Said& said, const Model& model, std::uint64_t trainers) {
  return said.kind == LayoutKind::custom ? custom_layout(model, trainers, said.held)
                                         : make_layout(said.kind, model, trainers);
}

/// A rectangle of a tensor as those of its parameters.
void append_parts(const Model& model, std::size_t from, std::size_t parameter, const Slice& slice,
                  std::vector<HeldRectangle>& held) {
  if (parameter >= model.parameters.size()) return held.push_back({from, parameter, slice});
  for (auto p = parameter; p < model.tensor_end(parameter); ++p) {
    if (const auto part = intersection(slice, section_of(model.parameters[p])); !part.empty())
      held.push_back({from, p, part});
  }
}

/// What the trainer ranks say, on all ranks, and that it is a layout. Collective.
Said ask_for_layout(const Communicator& comm, const Model& model, const Stated& mine, bool trainer,
                    std::span<const StatedRectangle> rectangles, Deadline deadline) {
  Said said;
  agree(comm, "layout", deadline, [&](Deadline work) {
    const auto stated = comm.all_gather_values(std::span<const Stated>(&mine, 1), work);
    const auto all = comm.all_gather_values(rectangles, work);
    compare(mine, stated.front().front(), trainer);
    said.kind = static_cast<LayoutKind>(stated.front().front().kind);
    for (std::size_t from = 0; from < all.size(); ++from) {
      for (const auto& [parameter, slice] : all[from]) append_parts(model, from, parameter, slice, said.held);
    }
    if (comm.rank() == 0) layout_of(said, model, mine.trainers);  // one rank says for all what is wrong with it
  });
  return said;
}

}  // namespace

Membership::Membership(const wc_options* given, bool trainer) {
  expect_argument(given, "options");
  const auto options = read_options_struct(*given);
  expect_argument(options.model, "options.model");
  group = read_options(options);
  group.scrub = true;
  if (options.slots == 1) commit = CommitMode::in_place;
  expect_mpi();
  comm = communicator(options);
  const auto trainers = std::max<std::uint64_t>(options.trainers, 1);
  Model model;
  Stated stated{.trainers = trainers};
  std::vector<StatedRectangle> rectangles;
  agree(comm, "start", deadline(), [&] {
    expect_role(comm.rank(), trainers, trainer);
    const auto roster = form_roster(options.tp != 0 ? std::optional(options.tp) : std::nullopt,
                                    std::max<std::uint64_t>(options.dp, 1), comm.size(), trainers);
    group.tp = roster.tp;
    group.dp = roster.dp;
    if (group.placement.kind == MemoryKind::cuda && (group.placement.gpu < 0 || group.placement.gpu >= gpu::count())) {
      throw Error(ExitCode::config,
                  gpu::count() == 0
                      ? fmt::format("there is no GPU {}: {}", group.placement.gpu, gpu::why_none())
                      : fmt::format("there is no GPU {}: this process sees {}", group.placement.gpu, gpu::count()),
                  "choose another device, or the host's memory");
    }
    model = build_model(load_model_config(options.model),
                        {.ep = options.expert_parallel != 0 ? group.tp : 1, .quantization = read_quantize(options)});
    stated.parameters = model.parameters.size();
    stated.model_bytes = model.size_bytes();
    if (!trainer) return;
    stated.kind = static_cast<std::uint64_t>(read_kind(options));
    rectangles = read_sources(options, model);
  });
  const auto said = ask_for_layout(comm, model, stated, trainer, rectangles, deadline());
  agree(comm, "start", deadline(),
        [&] { plan = make_plan(model, group.tp, group.dp, layout_of(said, model, trainers)); });
  trainer_ranks = comm.split(trainer ? 0 : -1, comm.rank(), deadline());
}

}  // namespace weightcast
