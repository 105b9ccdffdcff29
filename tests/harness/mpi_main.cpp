// main() of every test under mpiexec. Rank 0 prints what GoogleTest prints; other ranks print their failures. The exit
// status is the same on all ranks: 1 if any test failed on any rank, 77 if every test was skipped on every rank; then
// rank 0 prints why, of several reasons the one that most have.
#include <gtest/gtest.h>
#include <mpi.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <memory>
#include <string>

namespace {

class RankListener : public testing::EmptyTestEventListener {
 public:
  RankListener(int rank, std::map<std::string, int>& skip_reasons) : rank_(rank), skip_reasons_(skip_reasons) {}

  void OnTestPartResult(const testing::TestPartResult& result) override {
    const std::string text = result.message() != nullptr ? result.message() : "";
    if (result.skipped()) ++skip_reasons_[text.substr(0, text.find('\n'))];
    if (rank_ == 0 || !result.failed()) return;
    std::fprintf(stderr, "[rank %d] %s:%d: %s\n", rank_, result.file_name() != nullptr ? result.file_name() : "?",
                 result.line_number(), result.message());
  }

  void OnTestEnd(const testing::TestInfo& info) override {
    int failed = info.result()->Failed() ? 1 : 0, any = 0;
    MPI_Allreduce(&failed, &any, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
    if (any != 0 && failed == 0) ADD_FAILURE() << "failed on another rank";
  }

 private:
  int rank_;
  std::map<std::string, int>& skip_reasons_;
};

}  // namespace

int main(int argc, char** argv) {
  int provided = 0, rank = 0;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &provided);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  testing::InitGoogleTest(&argc, argv);
  auto& listeners = testing::UnitTest::GetInstance()->listeners();
  if (rank != 0) {
    delete listeners.Release(listeners.default_result_printer());
    delete listeners.Release(listeners.default_xml_generator());
  }
  std::map<std::string, int> skip_reasons;
  listeners.Append(new RankListener(rank, skip_reasons));  // NOLINT: GoogleTest takes ownership
  const int failed = RUN_ALL_TESTS() != 0 ? 1 : 0;
  const auto& unit = *testing::UnitTest::GetInstance();
  const int ran = unit.test_to_run_count() - unit.skipped_test_count();
  int any_failed = 0, most_ran = 0;
  MPI_Allreduce(&failed, &any_failed, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
  MPI_Allreduce(&ran, &most_ran, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
  const bool none_ran = any_failed == 0 && most_ran == 0;
  const auto most = std::ranges::max_element(skip_reasons, {}, [](const auto& reason) { return reason.second; });
  if (none_ran && rank == 0 && most != skip_reasons.end()) std::printf("skipped: %s\n", most->first.c_str());
  std::fflush(stdout);
  MPI_Barrier(MPI_COMM_WORLD);  // a rank that exits with 77 ends the others, and what they have not printed is lost
  MPI_Finalize();
  return any_failed != 0 ? 1 : none_ran ? 77 : 0;
}
