#include "weightcast/comm/message.hpp"

#include <utility>

#include "weightcast/comm/mpi_library.hpp"

namespace weightcast {

Message Message::send(const Communicator& comm, std::span<const std::byte> bytes, int peer, int tag) {
  Message message(comm);
  check_mpi(MPI_Isend(bytes.data(), static_cast<int>(bytes.size()), MPI_BYTE, peer, tag, comm.get(), &message.request_),
            "MPI_Isend");
  return message;
}

Message Message::receive(const Communicator& comm, std::span<std::byte> bytes, int peer, int tag) {
  Message message(comm);
  check_mpi(MPI_Irecv(bytes.data(), static_cast<int>(bytes.size()), MPI_BYTE, peer, tag, comm.get(), &message.request_),
            "MPI_Irecv");
  return message;
}

Message::Message(Message&& other) noexcept
    : comm_(other.comm_), request_(std::exchange(other.request_, MPI_REQUEST_NULL)) {}

Message& Message::operator=(Message&& other) noexcept {
  std::swap(comm_, other.comm_);
  std::swap(request_, other.request_);
  return *this;
}

Message::~Message() {
  // Some are kept until the process ends, when MPI may be over.
  if (request_ == MPI_REQUEST_NULL || mpi_state() == MpiState::finalized) return;
  MPI_Cancel(&request_);
  MPI_Request_free(&request_);
}

bool Message::done() {
  int flag = 0;
  check_mpi(MPI_Test(&request_, &flag, MPI_STATUS_IGNORE), "MPI_Test");
  return flag != 0;
}

void Message::wait(Deadline deadline, std::string_view what, FunctionRef<bool()> idle) {
  if (request_ != MPI_REQUEST_NULL) wait_all(*comm_, {&request_, 1}, deadline, what, idle);
}

bool message_waits(const Communicator& comm, int peer, int tag) {
  int flag = 0;
  check_mpi(MPI_Iprobe(peer, tag, comm.get(), &flag, MPI_STATUS_IGNORE), "MPI_Iprobe");
  return flag != 0;
}

}  // namespace weightcast
