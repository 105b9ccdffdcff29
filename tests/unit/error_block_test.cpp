#include "weightcast/job/error_block.hpp"

#include <gtest/gtest.h>

namespace weightcast {
namespace {

TEST(ErrorBlock, SaysWhatWhereAndWhatToDo) {
  Error error(ExitCode::bad_data, "a.safetensors: byte 12 is no header", "download it again");
  error.origin() = {.stage = "load", .rank = 2, .host = "node7", .role = "engine"};
  EXPECT_EQ(error_block(error, 65),
            "weightcast: error: a.safetensors: byte 12 is no header\n"
            "  kind   bad input data (exit status 65)\n"
            "  where  rank 2, host node7, engine, stage load\n"
            "  fix    download it again\n");
}

TEST(ErrorBlock, LeavesOutWhatIsUnknown) {
  EXPECT_EQ(error_block(Error(ExitCode::usage, "no"), 2),
            "weightcast: error: no\n  kind   wrong usage (exit status 2)\n");
}

TEST(ErrorBlock, IndentsLinesAndEscapesControlBytes) {
  EXPECT_EQ(error_block(Error(ExitCode::bad_data, "first\n\x1b[31msecond"), 65),
            "weightcast: error: first\n  \\x1b[31msecond\n  kind   bad input data (exit status 65)\n");
}

}  // namespace
}  // namespace weightcast
