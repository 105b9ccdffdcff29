// After the first updates nothing is allocated any more, no thread is started, and memory stays what it is.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "harness/delta_rig.hpp"
#include "harness/holdings.hpp"
#include "harness/update_rig.hpp"
#include "weightcast/verify/shard_digests.hpp"

namespace {

// Of all threads: what C++ allocates (ours), and what C does (MPI's and the system's).
std::atomic<std::uint64_t> cpp_allocations{0}, c_allocations{0};

void* counted(std::size_t size, std::size_t alignment) {
  ++cpp_allocations;
  const auto whole = (std::max<std::size_t>(size, 1) + alignment - 1) / alignment * alignment;
  void* const memory =
      alignment <= alignof(std::max_align_t) ? std::malloc(size) : std::aligned_alloc(alignment, whole);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace

// The other forms end in these, also with a sanitizer's library.
void* operator new(std::size_t size) {
  return counted(size, 1);
}
void* operator new(std::size_t size, std::align_val_t alignment) {
  return counted(size, static_cast<std::size_t>(alignment));
}
void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  return counted(size, 1);
}
void operator delete(void* memory) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::align_val_t) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept {
  std::free(memory);
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
extern "C" {
void* __libc_malloc(std::size_t size);                     // NOLINT: glibc's name
void* __libc_calloc(std::size_t count, std::size_t size);  // NOLINT
void* __libc_realloc(void* memory, std::size_t size);      // NOLINT
void* malloc(std::size_t size) {
  c_allocations.fetch_add(1, std::memory_order_relaxed);
  return __libc_malloc(size);
}
void* calloc(std::size_t count, std::size_t size) {
  c_allocations.fetch_add(1, std::memory_order_relaxed);
  return __libc_calloc(count, size);
}
void* realloc(void* memory, std::size_t size) {
  c_allocations.fetch_add(1, std::memory_order_relaxed);
  return __libc_realloc(memory, size);
}
}
#endif

namespace weightcast {
namespace {

using testing_harness::DeltaRig;
using testing_harness::Holdings;
using testing_harness::sanitized;
using testing_harness::slack_bytes;
using testing_harness::UpdateRig;

struct Case {
  std::string transport;
  Method method = Method::sharded;
  MemoryKind memory = MemoryKind::host;
};

void PrintTo(const Case& c, std::ostream* out) {
  *out << c.transport << " " << name(c.method) << " " << name(c.memory);
}

class SteadyStateTest : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    if (testing_harness::world_size() < 2) GTEST_SKIP() << "needs an engine rank";
    const auto& param = GetParam();
    if (const auto reason = testing_harness::why_not(param.memory, param.transport); !reason.empty())
      GTEST_SKIP() << reason;
    testing_harness::stand_apart(param.transport == "nccl");
    rig.emplace(UpdateRig::Settings{
        .transport = param.transport, .method = param.method, .memory = param.memory, .scrub = true});
  }

  /// Updates of the whole model, each of which changes every byte.
  void update(int count) {
    for (int i = 0; i < count; ++i, ++version) ASSERT_FALSE(rig->update(version % 2, version));
  }
  /// The same, a parameter at a time.
  void update_by_parameter(bool empty_cache) {
    for (const auto& rule : rig->plan.model.parameters) {
      const auto& info = rule.info;
      ASSERT_FALSE(rig->together([&] {
        if (rig->trainer) {
          rig->trainer->update_parameter(version % 2, version, info.name, empty_cache);
        } else {
          rig->engine->update_parameter_from_distributed(info.name, info.dtype, info.shape, empty_cache)
              .throw_if_refused();
        }
      }));
    }
    ++version;
  }
  testing::AssertionResult serves_the_last() {
    return rig->serves(version - 1, (version - 1) % 2 == 0 ? rig->seed2 : rig->seed1);
  }
  /// On every rank, between updates.
  Holdings look() const {
    rig->world.barrier(Deadline::after(20));
    const Holdings now(GetParam().memory);
    rig->world.barrier(Deadline::after(20));
    return now;
  }

  std::optional<UpdateRig> rig;
  std::uint64_t version = 2;
};

TEST_P(SteadyStateTest, UpdatesAllocateNothing) {
  update(5);
  const auto before = look();
  const std::uint64_t cpp = cpp_allocations, c = c_allocations;
  update(100);
  const auto cpp_more = cpp_allocations - cpp, c_more = c_allocations - c;
  const auto after = look();
  if (GetParam().memory == MemoryKind::host) {
    EXPECT_EQ(cpp_more, 0u);
  }
  EXPECT_EQ(after.gpu_allocations, before.gpu_allocations);
  EXPECT_EQ(after.gpu_free_bytes, before.gpu_free_bytes);
  EXPECT_TRUE(serves_the_last());
  // MPI and CUDA allocate as they please; CUDA's libraries in C++ too.
  const auto rank = testing_harness::world_rank();
  if (rank < 2) fmt::print("[rank {}] 100 updates: {} allocations by C++, {} by C\n", rank, cpp_more, c_more);
}

TEST_P(SteadyStateTest, ScrubsAllocateNothing) {
  update(3);
  std::optional<ParameterStore::Pin> pin;
  if (rig->engine) pin.emplace(rig->engine->store().pin());
  const auto scrub = [&](int count) {
    for (int i = 0; pin && i < count; ++i) ASSERT_TRUE(rig->engine->group().scrub(*pin, Deadline::after(20)));
  };
  scrub(3);
  const auto before = look();
  const std::uint64_t cpp = cpp_allocations;
  scrub(100);
  const auto cpp_more = cpp_allocations - cpp;
  const auto after = look();
  if (GetParam().memory == MemoryKind::host) {
    EXPECT_EQ(cpp_more, 0u);
  }
  EXPECT_EQ(after.gpu_allocations, before.gpu_allocations);
  EXPECT_EQ(after.gpu_free_bytes, before.gpu_free_bytes);
}

TEST_P(SteadyStateTest, DeltasAllocateNothing) {
  rig.reset();
  const auto world = Communicator::duplicate(MPI_COMM_WORLD);
  const testing_harness::Hooks hooks;
  DeltaRig deltas(world,
                  {.transport = GetParam().transport,
                   .tp = static_cast<std::uint64_t>(world.size()) - 1,
                   .memory = GetParam().memory,
                   .regions = 2},
                  hooks);
  std::mt19937_64 random(3);
  auto weights = deltas.served;
  std::uint64_t cpp = 0, gpu_more = 0, by_delta = 0;
  for (std::uint64_t i = 1; i <= 40; ++i) {
    testing_harness::change(weights, 0.02, 1, random);
    const auto region = i % 3 == 0 ? 0u : 1u;  // what fill() has marked, and what differs from the other region
    deltas.fill(region, weights);
    world.barrier(Deadline::after(20));
    UpdateResult result;
    const std::uint64_t before = cpp_allocations, gpu_before = gpu::allocations();
    const auto error = deltas.publish(region, i, result);
    const auto more = cpp_allocations - before, gpu_allocated = gpu::allocations() - gpu_before;
    ASSERT_FALSE(error) << error->what();
    if (result.payload == Payload::delta) ++by_delta;
    if (i <= 6) continue;
    cpp += more;
    gpu_more += gpu_allocated;
  }
  EXPECT_GT(by_delta, 20u);
  EXPECT_EQ(gpu_more, 0u);
  if (GetParam().memory == MemoryKind::host) {
    EXPECT_EQ(cpp, 0u);
  }
  ASSERT_TRUE(deltas.holds(weights, 40));
}

TEST_P(SteadyStateTest, AThousandUpdatesKeepMemoryAndDescriptors) {
  update(200);
  const auto before = look();
  update(1000);
  const auto after = look();
  EXPECT_EQ(after.descriptors, before.descriptors);
  EXPECT_EQ(after.gpu_allocations, before.gpu_allocations);
  EXPECT_EQ(after.gpu_free_bytes, before.gpu_free_bytes);
  EXPECT_TRUE(sanitized || after.resident_bytes <= before.resident_bytes + slack_bytes)
      << before.resident_bytes << " bytes, then " << after.resident_bytes;
}

TEST_P(SteadyStateTest, EmptyCacheGivesBackWhatTheNextCallAllocatesAgain) {
  if (GetParam().memory == MemoryKind::cuda) GTEST_SKIP() << "looks at host memory";
  const auto staging = [&] {
    UpdateResult result;
    EXPECT_FALSE(rig->update(version % 2, version, &result));
    ++version;
    return result.staging_bytes;
  };
  const auto bytes = staging();
  if (rig->caller()) {
    EXPECT_EQ(bytes != 0,
              GetParam().transport == "mpi" && (GetParam().method == Method::sharded) == (rig->trainer != nullptr));
  }
  update_by_parameter(false);
  const auto before = look();
  update_by_parameter(true);
  EXPECT_LE(look().resident_bytes + bytes, before.resident_bytes + slack_bytes);
  EXPECT_TRUE(serves_the_last());
  EXPECT_EQ(staging(), bytes);
  EXPECT_TRUE(serves_the_last());
}

const Case host_cases[] = {{"direct"}, {"mpi"}, {"mpi", Method::broadcast}};
const Case gpu_cases[] = {{"direct", Method::sharded, MemoryKind::cuda},
                          {"nccl", Method::sharded, MemoryKind::cuda},
                          {"nccl", Method::broadcast, MemoryKind::cuda}};
INSTANTIATE_TEST_SUITE_P(Host, SteadyStateTest, testing::ValuesIn(host_cases));
INSTANTIATE_TEST_SUITE_P(Gpu, SteadyStateTest, testing::ValuesIn(gpu_cases));

TEST(SteadyState, TheTrainersDigestsStartNoThread) {
  const ModelConfig c{.layers = 1,
                      .hidden = 1024,
                      .heads = 8,
                      .kv_heads = 8,
                      .head_dim = 128,
                      .intermediate = 2048,
                      .vocabulary = 16'000};
  const auto plan = make_plan(build_model(c), 1, 1);
  const std::vector<std::byte> source(plan.source_bytes(), std::byte{42});
  SourceDigests alone(plan, 1), together(plan, 2);
  const auto digest = [&](SourceDigests& digests) {
    digests.begin(source.data(), {0, plan.model.parameters.size()});
    digests.finish();
  };
  digest(alone);
  digest(together);
  const std::uint64_t before = cpp_allocations;  // a std::thread would be one
  for (int i = 0; i < 10; ++i) digest(together);
  EXPECT_EQ(cpp_allocations, before);
  for (std::size_t p = 0; p < plan.model.parameters.size(); ++p)
    EXPECT_EQ(together.claim().held(p), alone.claim().held(p)) << plan.model.parameters[p].info.name;
}

}  // namespace
}  // namespace weightcast
