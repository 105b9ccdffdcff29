#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>

#include "weightcast/capi/handle.hpp"
#include "weightcast/engine/engine.hpp"
#include "weightcast/telemetry/stopwatch.hpp"

using namespace weightcast;

struct wc_engine {
  explicit wc_engine(const wc_options* options)
      : member(options, false), destinations(member.plan, member.tp_rank(), member.group.placement) {
    agree(member.comm, "start", member.long_deadline(), [&] {
      const auto given = read_options_struct(*options);
      if (given.destinations != nullptr || given.destination_count > 0)
        destinations.resolve(read_destinations(given.destinations, given.destination_count));
      engine.emplace(member.plan, member.tp_rank(), member.commit, member.group.placement);
    });
    engine->init_parameter_update_group(member.comm, member.group, Driver::every_rank);
    for (const auto& tensor : member.plan.engine_tensors) shapes.push_back(shape_of(member.plan, tensor));
  }

  Membership member;
  Destinations destinations;
  std::optional<Engine> engine;
  std::vector<std::vector<std::uint64_t>> shapes;  // of engine tensors
  bool foreign = false;                            // the last update went to the caller's tensors,
  std::uint64_t foreign_version = 0;               // and this is what they hold
  std::atomic<std::size_t> pins{0};
  std::optional<Error> lost;
};

struct wc_pin {
  wc_engine* engine;
  ParameterStore::Pin pin;
};

namespace {

/// Error(usage) unless both can be used; until when to wait.
Deadline read_wait(double wait_s, const wc_update* update) {
  constexpr double forever_s = 1e9;
  expect_argument(update, "update");
  expect_update(update);
  if (std::isnan(wait_s)) fail(ExitCode::usage, "wait_s is not a number");
  return Deadline::after(wait_s < 0 ? forever_s : std::min(wait_s, forever_s));
}

void write_closed(wc_update* update) {
  write_update(update, {}, 0);
  update->closed = 1;
}

}  // namespace

int wc_engine_create(const wc_options* options, wc_engine** engine) {
  return guarded([&] {
    expect_argument(engine, "the handle");
    *engine = std::make_unique<wc_engine>(options).release();
  });
}

int wc_receive(wc_engine* engine, double wait_s, wc_update* update) {
  return guarded(engine, [&] {
    const auto result = engine->engine->receive(read_wait(wait_s, update));
    if (!result) return write_closed(update);
    engine->foreign = false;
    write_update(update, *result, 0);
  });
}

int wc_receive_into(wc_engine* engine, double wait_s, const wc_tensor* tensors, size_t count, wc_update* update) {
  return guarded(engine, [&] {
    const auto wait = read_wait(wait_s, update);
    const auto table = read_destinations(tensors, count);
    // In PREPARE, so that a table that does not fit is refused by all.
    const auto fits = [&](const UpdateClaim&) { engine->destinations.resolve(table); };
    const auto result = engine->engine->receive(wait, fits);
    if (!result) return write_closed(update);
    const Stopwatch watch;
    engine->foreign = true;
    engine->foreign_version = 0;  // until all of them hold it
    agree(engine->engine->group().replica(), "copy", engine->member.long_deadline(), [&](Deadline deadline) {
      const auto pin = engine->engine->store().pin("wc_receive_into()");
      engine->destinations.copy(pin.slot(), deadline);
    });
    engine->foreign_version = result->version;
    write_update(update, *result, watch.elapsed_s());
  });
}

int wc_update_parameter_from_distributed(wc_engine* engine, const char* name, const char* dtype, const uint64_t* shape,
                                         size_t dimensions, int empty_cache, wc_update* update) {
  return guarded(engine, [&] {
    read_wait(0, update);
    wc_tensor expected = WC_TENSOR_INIT;
    expected.name = name;
    expected.dtype = dtype;
    expected.shape = shape;
    expected.dimensions = dimensions;
    const auto info = read_info(expected);
    const auto answer =
        engine->engine->update_parameter_from_distributed(info.name, info.dtype, info.shape, empty_cache != 0);
    auto result = answer.throw_if_refused();
    engine->foreign = false;
    if (!result.committed) result.version = engine->engine->store().served().value_or(0);
    write_update(update, result, 0);
  });
}

int wc_get_weights_by_parameter_name(wc_engine* engine, const char* name, uint64_t truncate_size, float* values,
                                     size_t capacity, size_t* count, uint64_t* version) {
  return guarded(engine, [&] {
    expect_argument(name, "name");
    expect_argument(count, "count");
    if (capacity > 0) expect_argument(values, "values");
    const auto rows = engine->engine->get_weights_by_parameter_name(name, truncate_size);
    *count = rows.values.size();
    if (version != nullptr) *version = rows.version;
    std::copy_n(rows.values.begin(), std::min(capacity, rows.values.size()), values);
  });
}

int wc_engine_version(wc_engine* engine, uint64_t* version) {
  return guarded([&] {
    expect_argument(engine, "the handle");
    expect_argument(version, "version");
    *version = engine->foreign ? engine->foreign_version : engine->engine->store().served().value_or(0);
  });
}

int wc_pin_served(wc_engine* engine, wc_pin** pin) {
  return guarded([&] {
    expect_argument(engine, "the handle");
    expect_argument(pin, "pin");
    *pin = new wc_pin{engine, engine->engine->store().pin("a wc_pin")};
    ++engine->pins;
  });
}

int wc_pin_version(const wc_pin* pin, uint64_t* version) {
  return guarded([&] {
    expect_argument(pin, "pin");
    expect_argument(version, "version");
    *version = pin->pin.version().id;
  });
}

void wc_unpin(wc_pin* pin) {
  if (pin == nullptr) return;
  auto& pins = pin->engine->pins;
  delete pin;
  --pins;
}

int wc_engine_tensor_count(const wc_engine* engine, size_t* count) {
  return guarded([&] {
    expect_argument(engine, "the handle");
    expect_argument(count, "count");
    *count = engine->shapes.size();
  });
}

int wc_engine_tensor(const wc_engine* engine, const wc_pin* pin, size_t index, wc_tensor* tensor) {
  return guarded([&] {
    expect_argument(engine, "the handle");
    expect_argument(tensor, "tensor");
    const auto size = read_struct(*tensor, earlier_tensor_sizes, "wc_tensor").size;
    if (index >= engine->shapes.size())
      fail(ExitCode::usage, "there is no engine tensor {}: there are {}", index, engine->shapes.size());
    if (pin != nullptr && pin->engine != engine) fail(ExitCode::usage, "the pin is of another engine");
    const auto& planned = engine->member.plan.engine_tensors[index];
    const auto& shape = engine->shapes[index];
    const auto placement = engine->member.group.placement;
    const wc_tensor result{.size = size,
                           .name = planned.name.c_str(),
                           .dtype = name(planned.dtype).data(),  // of a literal
                           .shape = shape.data(),
                           .dimensions = shape.size(),
                           .data = pin == nullptr ? nullptr : pin->pin.slot().data + planned.offset,
                           .row_pitch_bytes = 0,
                           .memory = placement.kind == MemoryKind::cuda ? WC_CUDA : WC_HOST,
                           .device = placement.kind == MemoryKind::cuda ? placement.gpu : 0,
                           .strides_bytes = nullptr,
                           .offsets = nullptr,
                           .full_shape = nullptr};
    std::memcpy(tensor, &result, size);
  });
}

int wc_engine_digest(wc_engine* engine, char digest[33]) {
  return guarded(engine, [&] {
    expect_argument(digest, "digest");
    engine->engine->probe().digest.hex().copy(digest, 32);
    digest[32] = '\0';
  });
}

int wc_scrub(wc_engine* engine) {
  return guarded(engine, [&] { engine->engine->scrub(); });
}

int wc_engine_lost(const wc_engine* engine) {
  return engine != nullptr && engine->lost ? 1 : 0;
}

int wc_engine_destroy(wc_engine* engine) {
  return guarded([&] {
    if (engine == nullptr) return;
    if (engine->pins != 0)
      throw Error(ExitCode::busy, fmt::format("{} pins are held on this engine", engine->pins.load()),
                  "wc_unpin() them first");
    delete engine;
  });
}
