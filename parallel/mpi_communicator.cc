#include "parallel/mpi_communicator.h"

#include <mpi.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <limits>
#include <utility>
#include <vector>

namespace eyrie {
namespace {

void Check(int code, const char* operation) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  MPI_Error_string(code, text, &length);
  ThrowFailure(operation, ": ", std::string(text, static_cast<size_t>(length)));
}

MPI_Datatype Convert(DType dtype) {
  switch (dtype) {
    case DType::kF32: return MPI_FLOAT;
    case DType::kF64: return MPI_DOUBLE;
    case DType::kI32: return MPI_INT32_T;
    case DType::kBF16: break;
  }
  ThrowFailure("MPI has no reduction for ", Name(dtype));
}

// How long a rank may wait for others; 0: as long as it takes.
std::chrono::seconds wait_limit{0};

// Whether all of the requests are complete; then they are gone.
bool Complete(std::vector<MPI_Request>& requests) {
  int done = 0;
  Check(MPI_Testall(static_cast<int>(requests.size()), requests.data(), &done, MPI_STATUSES_IGNORE),
        "MPI_Testall");
  if (done != 0) requests.clear();
  return done != 0;
}

// Waits for all of the requests, or ends the job.
void Await(std::vector<MPI_Request>& requests) {
  using Clock = std::chrono::steady_clock;
  // A rank that was itself stopped for a while, and now goes on, must accuse nobody.
  constexpr Clock::duration kMostBetweenLooks = std::chrono::seconds(1);
  Clock::time_point looked = Clock::now();
  Clock::duration waited{0};
  for (unsigned polls = 1;; ++polls) {
    if (Complete(requests)) return;
    // The clock costs as much as a look at the requests.
    if (polls % 256 != 0 || wait_limit.count() == 0) continue;
    const Clock::time_point now = Clock::now();
    waited += std::min(now - std::exchange(looked, now), kMostBetweenLooks);
    if (waited > wait_limit) {
      std::fprintf(stderr,
                   "eyrie: communication: nothing from another rank for %lld s "
                   "(run.timeout_seconds)\n",
                   static_cast<long long>(wait_limit.count()));
      AbortAllRanks(static_cast<int>(ExitCode::kFailed));
    }
  }
}

class MpiPending final : public Event::Pending {
 public:
  explicit MpiPending(std::vector<MPI_Request> requests) : requests_(std::move(requests)) {}
  ~MpiPending() override {
    // While an error unwinds, the other ranks may never come.
    if (std::uncaught_exceptions() == 0) MpiPending::Wait();
  }
  void Wait() override {
    if (!requests_.empty()) Await(requests_);
  }
  bool Progress() override { return Complete(requests_); }

 private:
  std::vector<MPI_Request> requests_;
};

class MpiCommunicator final : public Communicator {
 public:
  explicit MpiCommunicator(MPI_Comm comm) : comm_(comm) {
    Check(MPI_Comm_rank(comm_, &rank_), "MPI_Comm_rank");
    Check(MPI_Comm_size(comm_, &size_), "MPI_Comm_size");
    Check(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  }
  ~MpiCommunicator() override {
    int finalized = 0;
    MPI_Finalized(&finalized);
    if (finalized == 0 && std::uncaught_exceptions() == 0) MPI_Comm_free(&comm_);
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }

  Event AllReduce(const Tensor& tensor, ReduceOp op) override {
    const MPI_Op mpi_op = op == ReduceOp::kSum ? MPI_SUM : MPI_MAX;
    std::vector<MPI_Request> requests;
    InPieces(tensor, requests, [&](void* data, int count, MPI_Request* request) {
      Check(
          MPI_Iallreduce(MPI_IN_PLACE, data, count, Convert(tensor.dtype), mpi_op, comm_, request),
          "MPI_Iallreduce");
    });
    return Started(std::move(requests));
  }

  Event AllGather(const Tensor& in, const Tensor& out) override {
    EYRIE_CHECK(out.size() == in.size() * size_ && in.dtype == out.dtype);
    const bool in_place =
        in.raw == static_cast<char*>(out.raw) + in.bytes() * static_cast<size_t>(rank_);
    MPI_Request request;
    Check(MPI_Iallgather(in_place ? MPI_IN_PLACE : in.raw, Count(in), Convert(in.dtype), out.raw,
                         Count(in), Convert(in.dtype), comm_, &request),
          "MPI_Iallgather");
    return Started({request});
  }

  Event ReduceScatter(const Tensor& in, const Tensor& out) override {
    EYRIE_CHECK(in.size() == out.size() * size_ && in.dtype == out.dtype);
    MPI_Request request;
    Check(MPI_Ireduce_scatter_block(in.raw, out.raw, Count(out), Convert(in.dtype), MPI_SUM, comm_,
                                    &request),
          "MPI_Ireduce_scatter_block");
    return Started({request});
  }

  Event Broadcast(const Tensor& tensor, int root) override {
    std::vector<MPI_Request> requests;
    InPieces(tensor, requests, [&](void* data, int count, MPI_Request* request) {
      Check(MPI_Ibcast(data, count, Convert(tensor.dtype), root, comm_, request), "MPI_Ibcast");
    });
    return Started(std::move(requests));
  }

  Event Exchange(const std::vector<Message>& sent, const std::vector<Message>& received) override {
    std::vector<MPI_Request> requests;
    for (const Message& message : received) {
      InPieces(message.tensor, requests, [&](void* data, int count, MPI_Request* request) {
        Check(MPI_Irecv(data, count, Convert(message.tensor.dtype), message.peer, /*tag=*/0, comm_,
                        request),
              "MPI_Irecv");
      });
    }
    for (const Message& message : sent) {
      InPieces(message.tensor, requests, [&](void* data, int count, MPI_Request* request) {
        Check(MPI_Isend(data, count, Convert(message.tensor.dtype), message.peer, /*tag=*/0, comm_,
                        request),
              "MPI_Isend");
      });
    }
    return Started(std::move(requests));
  }

  void Progress() override {
    // Any call that looks for messages runs the library's engine, which serves all operations.
    int ignored = 0;
    Check(MPI_Iprobe(MPI_ANY_SOURCE, MPI_ANY_TAG, comm_, &ignored, MPI_STATUS_IGNORE),
          "MPI_Iprobe");
  }

  void Barrier() override {
    std::vector<MPI_Request> request(1);
    Check(MPI_Ibarrier(comm_, request.data()), "MPI_Ibarrier");
    Await(request);
  }

  std::unique_ptr<Communicator> Split(int color, int key) override {
    MPI_Comm part;
    Check(MPI_Comm_split(comm_, color, key, &part), "MPI_Comm_split");
    return std::make_unique<MpiCommunicator>(part);
  }

  std::unique_ptr<Communicator> SplitNode() override {
    MPI_Comm node;
    Check(MPI_Comm_split_type(comm_, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &node),
          "MPI_Comm_split_type");
    return std::make_unique<MpiCommunicator>(node);
  }

 private:
  static constexpr int64_t kMaxCount = std::numeric_limits<int>::max();

  static int Count(const Tensor& tensor) {
    EYRIE_CHECK(tensor.device == Device::kCpu && tensor.size() <= kMaxCount);
    return static_cast<int>(tensor.size());
  }
  static Event Started(std::vector<MPI_Request> requests) {
    return Event(std::make_unique<MpiPending>(std::move(requests)));
  }
  // MPI counts are 32 bits: starts one operation for each piece of a larger tensor.
  template <class Start>
  static void InPieces(const Tensor& tensor, std::vector<MPI_Request>& requests,
                       const Start& start) {
    EYRIE_CHECK(tensor.device == Device::kCpu);
    for (int64_t done = 0; done < tensor.size(); done += kMaxCount) {
      const auto count = static_cast<int>(std::min(kMaxCount, tensor.size() - done));
      char* data =
          static_cast<char*>(tensor.raw) + static_cast<size_t>(done) * SizeOf(tensor.dtype);
      start(data, count, &requests.emplace_back());
    }
  }

  MPI_Comm comm_;
  int rank_ = 0;
  int size_ = 1;
};

}  // namespace

bool LaunchedByMpi() {
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK", "SLURM_STEP_ID"}) {
    if (std::getenv(name) != nullptr) return true;
  }
  return false;
}

MpiSession::MpiSession() {
  // A rank that waits gives up its core: with more ranks than cores, spinning would keep the very
  // ranks it waits for from running. The user's own setting stands.
  setenv("OMPI_MCA_mpi_yield_when_idle", "1", /*overwrite=*/0);
  int provided = 0;
  Check(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided), "MPI_Init_thread");
}

MpiSession::~MpiSession() { MPI_Finalize(); }

std::unique_ptr<Communicator> MpiSession::World() {
  MPI_Comm world;
  Check(MPI_Comm_dup(MPI_COMM_WORLD, &world), "MPI_Comm_dup");
  return std::make_unique<MpiCommunicator>(world);
}

void LimitWaits(int64_t seconds) { wait_limit = std::chrono::seconds(seconds); }

void AbortAllRanks(int exit_code) {
  int initialized = 0;
  MPI_Initialized(&initialized);
  if (initialized != 0) MPI_Abort(MPI_COMM_WORLD, exit_code);
  std::_Exit(exit_code);
}

}  // namespace eyrie
