#include "weightcast/comm/communicator.hpp"

#include <sched.h>
#include <sys/prctl.h>

#include <algorithm>
#include <array>
#include <ctime>
#include <exception>

#include "weightcast/comm/mpi_library.hpp"
#include "weightcast/core/parallel.hpp"

namespace weightcast {
namespace {

constexpr std::uint64_t message_limit = 1ULL << 30;  // counts are int

}  // namespace

void check_mpi(int status, std::string_view call) {
  if (status == MPI_SUCCESS) return;
  std::array<char, MPI_MAX_ERROR_STRING> text{};
  int length = 0;
  MPI_Error_string(status, text.data(), &length);
  fail(ExitCode::unavailable, "{}: {}", call, std::string_view(text.data(), static_cast<std::size_t>(length)));
}

// A waiting rank that has a core to itself may poll for as long as a whole GPU update takes.
Patience::Patience(const Communicator& comm) noexcept : spin_s_(comm.crowded() ? 1e-4 : 50e-3) {}

void Patience::pause() noexcept {
  constexpr long longest_nap_ns = 200'000;
  const auto waited = Deadline::Clock::now() - begin_;
  if (waited < std::chrono::duration<double>(spin_s_)) {
    ::sched_yield();
    return;
  }
  // By default naps of this thread end up to 50 us late.
  static thread_local const int punctual = ::prctl(PR_SET_TIMERSLACK, 1000, 0, 0, 0);
  static_cast<void>(punctual);
  const timespec nap{0, std::min<long>(longest_nap_ns, std::chrono::nanoseconds(waited).count() / 4)};
  ::nanosleep(&nap, nullptr);
}

void wait_all(const Communicator& comm, std::span<MPI_Request> requests, Deadline deadline, std::string_view what,
              FunctionRef<bool()> idle) {
  Patience patience(comm);
  while (true) {
    int done = 0;
    check_mpi(MPI_Testall(static_cast<int>(requests.size()), requests.data(), &done, MPI_STATUSES_IGNORE), what);
    if (done != 0) return;
    if (deadline.passed()) fail(ExitCode::deadline, "{} did not finish in time", what);
    if (!idle || !idle()) patience.pause();
  }
}

MpiEnvironment::MpiEnvironment(int* argc, char*** argv) {
  initialise_mpi(argc, argv);
}

MpiEnvironment::~MpiEnvironment() {
  if (std::uncaught_exceptions() == 0) MPI_Finalize();
}

void abort_job(ExitCode code) noexcept {
  MPI_Abort(MPI_COMM_WORLD, static_cast<int>(code));
  std::terminate();
}

void CommTraits::close(MPI_Comm comm) noexcept {
  if (mpi_state() != MpiState::finalized) MPI_Comm_free(&comm);
}

Communicator::Communicator(MPI_Comm comm, bool crowded) : comm_(comm), crowded_(crowded) {
  MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN);
  MPI_Comm_rank(comm, &rank_);
  MPI_Comm_size(comm, &size_);
}

Communicator Communicator::duplicate(MPI_Comm comm, Deadline deadline) {
  MPI_Comm copy = MPI_COMM_NULL;
  MPI_Request request = MPI_REQUEST_NULL;
  check_mpi(MPI_Comm_idup(comm, &copy, &request), "MPI_Comm_idup");
  wait_all(Communicator(), {&request, 1}, deadline, "duplicating a communicator");
  Communicator result(copy, true);
  const auto local = result.split_by_host(deadline);
  result.crowded_ = available_cores() < static_cast<std::size_t>(local.size());
  return result;
}

Communicator Communicator::duplicate_world(Deadline deadline) {
  return duplicate(MPI_COMM_WORLD, deadline);
}

Communicator Communicator::duplicate(Deadline deadline) const {
  auto result = duplicate(get(), deadline);
  result.clock_ = clock_;
  return result;
}

Communicator Communicator::split(int color, int key, Deadline deadline) const {
  const StageClock::Note note(clock_, "splitting the ranks", deadline);
  barrier(deadline);  // MPI_Comm_split cannot be polled: begin it only when everybody is there
  MPI_Comm part = MPI_COMM_NULL;
  check_mpi(MPI_Comm_split(get(), color < 0 ? MPI_UNDEFINED : color, key, &part), "MPI_Comm_split");
  if (part == MPI_COMM_NULL) return {};
  Communicator result(part, crowded_);
  result.clock_ = clock_;
  return result;
}

Communicator Communicator::split_by_host(Deadline deadline) const {
  const StageClock::Note note(clock_, "splitting the ranks", deadline);
  barrier(deadline);
  MPI_Comm part = MPI_COMM_NULL;
  check_mpi(MPI_Comm_split_type(get(), MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &part), "MPI_Comm_split_type");
  Communicator result(part, crowded_);
  result.clock_ = clock_;
  return result;
}

void Communicator::barrier(Deadline deadline) const {
  MPI_Request request = MPI_REQUEST_NULL;
  check_mpi(MPI_Ibarrier(get(), &request), "MPI_Ibarrier");
  wait_all(*this, {&request, 1}, deadline, "a barrier");
}

void Communicator::broadcast(std::span<std::byte> data, int root, Deadline deadline) const {
  while (!data.empty()) {
    const auto part = data.first(std::min<std::size_t>(data.size(), message_limit));
    MPI_Request request = MPI_REQUEST_NULL;
    check_mpi(MPI_Ibcast(part.data(), static_cast<int>(part.size()), MPI_BYTE, root, get(), &request), "MPI_Ibcast");
    wait_all(*this, {&request, 1}, deadline, "a broadcast");
    data = data.subspan(part.size());
  }
}

namespace {

std::uint64_t reduce(const Communicator& comm, std::uint64_t value, MPI_Op operation, Deadline deadline) {
  std::uint64_t result = 0;
  MPI_Request request = MPI_REQUEST_NULL;
  check_mpi(MPI_Iallreduce(&value, &result, 1, MPI_UINT64_T, operation, comm.get(), &request), "MPI_Iallreduce");
  wait_all(comm, {&request, 1}, deadline, "a reduction");
  return result;
}

}  // namespace

std::uint64_t Communicator::max(std::uint64_t value, Deadline deadline) const {
  return reduce(*this, value, MPI_MAX, deadline);
}

std::uint64_t Communicator::sum(std::uint64_t value, Deadline deadline) const {
  return reduce(*this, value, MPI_SUM, deadline);
}

void Communicator::sum(std::span<std::uint64_t> values, Deadline deadline) const {
  MPI_Request request = MPI_REQUEST_NULL;
  check_mpi(MPI_Iallreduce(MPI_IN_PLACE, values.data(), static_cast<int>(values.size()), MPI_UINT64_T, MPI_SUM, get(),
                           &request),
            "MPI_Iallreduce");
  wait_all(*this, {&request, 1}, deadline, "a sum");
}

std::vector<std::string> Communicator::all_gather(std::string_view text, Deadline deadline) const {
  const auto ranks = static_cast<std::size_t>(size_);
  const auto limit = max(text.size(), deadline);
  if (limit * ranks > message_limit)
    fail(ExitCode::internal, "an exchange of {} x {} bytes is too large", ranks, limit);
  std::vector<std::uint64_t> sizes(ranks);
  const std::uint64_t own = text.size();
  std::vector<char> mine(limit), all(limit * ranks);
  std::copy(text.begin(), text.end(), mine.begin());
  std::array<MPI_Request, 2> requests{};
  check_mpi(MPI_Iallgather(&own, 1, MPI_UINT64_T, sizes.data(), 1, MPI_UINT64_T, get(), &requests[0]),
            "MPI_Iallgather");
  check_mpi(MPI_Iallgather(mine.data(), static_cast<int>(limit), MPI_CHAR, all.data(), static_cast<int>(limit),
                           MPI_CHAR, get(), &requests[1]),
            "MPI_Iallgather");
  wait_all(*this, requests, deadline, "an exchange");
  std::vector<std::string> result;
  for (std::size_t r = 0; r < ranks; ++r) result.emplace_back(all.data() + r * limit, sizes[r]);
  return result;
}

std::vector<std::byte> Communicator::gather(std::span<const std::byte> data, int root, Deadline deadline) const {
  std::vector<std::byte> all(rank_ == root ? data.size() * static_cast<std::size_t>(size_) : 0);
  const auto count = static_cast<int>(data.size());
  MPI_Request request = MPI_REQUEST_NULL;
  check_mpi(MPI_Igather(data.data(), count, MPI_BYTE, all.data(), count, MPI_BYTE, root, get(), &request),
            "MPI_Igather");
  wait_all(*this, {&request, 1}, deadline, "a gather");
  return all;
}

}  // namespace weightcast
