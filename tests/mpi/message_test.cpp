// The owner of a message that is under way.
#include "weightcast/comm/message.hpp"

#include <gtest/gtest.h>

#include "weightcast/comm/mpi_library.hpp"

namespace weightcast {
namespace {

constexpr int tag = 7, other_tag = 8;

class MessageTest : public ::testing::Test {
 protected:
  /// Ranks 0 and 1 talk; others look on.
  void SetUp() override { world = Communicator::duplicate_world(); }
  Communicator world;
  Deadline deadline = Deadline::after(30);
};

TEST_F(MessageTest, OneThatIsGivenUpTakesNoLaterMessage) {
  std::uint64_t given_up = 0, kept = 0;
  if (world.rank() == 0) {
    { const auto message = Message::receive(world, writable_bytes_of(given_up), 1, tag); }
    world.barrier(deadline);  // the message is sent only now
    Message::receive(world, writable_bytes_of(kept), 1, tag).wait(deadline, "a message");
    EXPECT_EQ(kept, 42U);
    EXPECT_EQ(given_up, 0U);
    return;
  }
  world.barrier(deadline);
  const std::uint64_t value = 42;
  if (world.rank() == 1) Message::send(world, bytes_of(value), 0, tag).wait(deadline, "sending");
}

TEST_F(MessageTest, WaitingEndsAndNamesWhatItWaitedFor) {
  std::uint64_t nothing = 0;
  auto message = Message::receive(world, writable_bytes_of(nothing), world.rank(), tag);
  EXPECT_FALSE(message.done());
  try {
    message.wait(Deadline::after(0.01), "a message that nobody sends");
    FAIL() << "it came";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::deadline);
    EXPECT_NE(std::string(error.what()).find("a message that nobody sends"), std::string::npos);
  }
}

TEST_F(MessageTest, ItMovesWithItsOwner) {
  std::uint64_t sent = 5, received = 0;
  auto first = Message::receive(world, writable_bytes_of(received), world.rank(), tag);
  Message second;
  EXPECT_TRUE(second.done());
  second = std::move(first);
  EXPECT_TRUE(first.done());  // NOLINT(bugprone-use-after-move): it is none
  EXPECT_FALSE(second.done());
  Message::send(world, bytes_of(sent), world.rank(), tag).wait(deadline, "sending");
  second.wait(deadline, "a message");
  EXPECT_EQ(received, sent);
}

TEST_F(MessageTest, OneThatWaitsIsSeenUnderItsTagAlone) {
  std::uint64_t sent = 5, received = 0;
  EXPECT_FALSE(message_waits(world, world.rank(), tag));
  auto message = Message::send(world, bytes_of(sent), world.rank(), tag);
  for (Patience patience(world); !message_waits(world, world.rank(), tag) && !deadline.passed(); patience.pause()) {
  }
  EXPECT_TRUE(message_waits(world, world.rank(), tag));
  EXPECT_FALSE(message_waits(world, world.rank(), other_tag));
  Message::receive(world, writable_bytes_of(received), world.rank(), tag).wait(deadline, "a message");
  message.wait(deadline, "sending");
}

TEST_F(MessageTest, EverybodyGetsEverybodysValuesWhateverTheirNumber) {
  struct Pair {
    std::uint64_t rank = 0;
    double seconds = 0;
  };
  const auto rank = static_cast<std::uint64_t>(world.rank());
  const std::vector<Pair> mine(rank, {rank, 0.5});  // none on rank 0
  const auto all = world.all_gather_values(std::span<const Pair>(mine), deadline);
  ASSERT_EQ(all.size(), static_cast<std::size_t>(world.size()));
  for (std::size_t r = 0; r < all.size(); ++r) {
    ASSERT_EQ(all[r].size(), r);
    for (const auto& pair : all[r]) {
      EXPECT_EQ(pair.rank, r);
      EXPECT_EQ(pair.seconds, 0.5);
    }
  }
}

TEST_F(MessageTest, MpiRunsAndHasAName) {
  EXPECT_EQ(mpi_state(), MpiState::running);
  EXPECT_TRUE(inside_mpi());
  EXPECT_FALSE(mpi_library().empty());
  EXPECT_FALSE(foreign_communicator(123456));
}

}  // namespace
}  // namespace weightcast
