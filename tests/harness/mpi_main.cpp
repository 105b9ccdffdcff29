// main() of every test under mpiexec. Rank 0 prints what GoogleTest prints; other ranks print their failures. The exit
// status is the same on all ranks: 1 if any test failed on any rank, 77 if every test was skipped on every rank; then
// rank 0 prints why.
#include <gtest/gtest.h>
#include <mpi.h>

#include <cstdio>
#include <memory>
#include <set>
#include <string>

namespace {

class RankListener : public testing::EmptyTestEventListener {
 public:
  RankListener(int rank, std::set<std::string>& skip_reasons) : rank_(rank), skip_reasons_(skip_reasons) {}

  void OnTestPartResult(const testing::TestPartResult& result) override {
    const std::string text = result.message() != nullptr ? result.message() : "";
    if (result.skipped()) skip_reasons_.insert(text.substr(0, text.find('\n')));
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
  std::set<std::string>& skip_reasons_;
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
  std::set<std::string> skip_reasons;
  listeners.Append(new RankListener(rank, skip_reasons));  // NOLINT: GoogleTest takes ownership
  const int failed = RUN_ALL_TESTS() != 0 ? 1 : 0;
  const auto& unit = *testing::UnitTest::GetInstance();
  const int ran = unit.test_to_run_count() - unit.skipped_test_count();
  int any_failed = 0, most_ran = 0;
  MPI_Allreduce(&failed, &any_failed, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
  MPI_Allreduce(&ran, &most_ran, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
  MPI_Finalize();
  if (any_failed != 0) return 1;
  if (most_ran != 0) return 0;
  for (const auto& reason : skip_reasons) {
    if (rank == 0) std::printf("skipped: %s\n", reason.c_str());
  }
  return 77;
}
