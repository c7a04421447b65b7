#include <nccl.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "core/cuda.h"
#include "parallel/nccl_communicator.h"

namespace eyrie {
namespace {

void Check(ncclResult_t code, const char* what) {
  if (code != ncclSuccess && code != ncclInProgress) {
    ThrowFailure(what, ": ", ncclGetErrorString(code));
  }
}
#define EYRIE_NCCL_CHECK(call) Check(call, #call)

ncclDataType_t Type(DType dtype) {
  switch (dtype) {
    case DType::kF32: return ncclFloat32;
    case DType::kF64: return ncclFloat64;
    case DType::kBF16: return ncclBfloat16;
    case DType::kI32: return ncclInt32;
  }
  ThrowFailure("NCCL has no type for ", Name(dtype));
}

// CUDA events, used again and again.
class EventPool {
 public:
  ~EventPool() {
    for (cudaEvent_t event : all_) cudaEventDestroy(event);
  }
  cudaEvent_t Take() {
    if (free_.empty()) {
      cudaEvent_t event = nullptr;
      EYRIE_CUDA_CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
      all_.push_back(event);
      return event;
    }
    cudaEvent_t event = free_.back();
    free_.pop_back();
    return event;
  }
  void Give(cudaEvent_t event) { free_.push_back(event); }

 private:
  std::vector<cudaEvent_t> all_, free_;
};

constexpr std::chrono::milliseconds kEvery{200};  // between the looks of threads that watch

[[noreturn]] void End(const std::string& message) {
  std::fprintf(stderr, "eyrie: %s\n", message.c_str());
  std::fflush(stderr);
  std::_Exit(static_cast<int>(ExitCode::kFailed));
}

// Ends the process after as many looks in a row without progress as make the timeout. They are
// counted, and no clock is read, so that a process that was itself stopped accuses nobody.
void EndIfLate(int64_t looks, int64_t timeout_seconds, const std::string& operation) {
  if (looks * kEvery <= std::chrono::seconds(timeout_seconds)) return;
  End(StrCat("communication among GPUs: nothing has finished for ", timeout_seconds,
             " s (run.timeout_seconds)", operation));
}

// Watches, from a thread that asks CUDA nothing, over a call in which the host waits for all ranks,
// as long as this object lives.
class CallWatch {
 public:
  CallWatch(const char* call, int64_t timeout_seconds)
      : thread_([this, call, timeout_seconds](const std::stop_token& stop) {
          std::unique_lock lock(mutex_);
          for (int64_t looks = 0; !stop.stop_requested(); ++looks) {
            EndIfLate(looks, timeout_seconds, StrCat(", in ", call));
            wake_.wait_for(lock, stop, kEvery, [] { return false; });
          }
        }) {}

 private:
  std::mutex mutex_;
  std::condition_variable_any wake_;
  std::jthread thread_;
};

// Watches over a communicator from a thread of its own: the host may be stuck behind an operation
// that a lost peer will never complete. It may then be stuck inside CUDA, where no other thread
// gets an answer either; so a second thread, which asks CUDA nothing, watches the first.
class Watch {
 public:
  Watch(ncclComm_t comm, int device, int64_t timeout_seconds)
      : comm_(comm),
        timeout_(timeout_seconds),
        thread_([this, device] { Run(device); }),
        guard_([this](const std::stop_token& stop) { Guard(stop); }) {}
  ~Watch() {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    thread_.join();
    guard_.request_stop();
    guard_.join();
    for (const Started& started : started_) cudaEventDestroy(started.done);
  }
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;

  // An operation has just been given to `stream`.
  void Add(const char* operation, cudaStream_t stream) {
    const std::lock_guard lock(mutex_);
    // The latest one stands for those before it: looking at every one would cost an event each.
    if (started_.size() >= 2) {
      started_.back().operation = operation;
      EYRIE_CUDA_CHECK(cudaEventRecord(started_.back().done, stream));
      return;
    }
    if (started_.empty()) without_progress_ = 0;
    cudaEvent_t event = nullptr;
    EYRIE_CUDA_CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    EYRIE_CUDA_CHECK(cudaEventRecord(event, stream));
    started_.push_back({operation, event});
  }

 private:
  struct Started {
    const char* operation;
    cudaEvent_t done;
  };

  void Guard(const std::stop_token& stop) const {
    int64_t seen = -1, without_look = 0;
    while (!stop.stop_requested()) {
      std::this_thread::sleep_for(kEvery);
      const int64_t looks = looks_;
      without_look = looks == seen ? without_look + 1 : 0;
      seen = looks;
      EndIfLate(without_look, timeout_, "");
    }
  }

  void Run(int device) {
    cudaSetDevice(device);
    std::unique_lock lock(mutex_);
    while (!wake_.wait_for(lock, kEvery, [this] { return stop_; })) {
      ++looks_;
      ncclResult_t error = ncclSuccess;
      if (ncclCommGetAsyncError(comm_, &error) == ncclSuccess && error != ncclSuccess &&
          error != ncclInProgress) {
        End(StrCat("communication among GPUs failed: ", ncclGetErrorString(error)));
      }
      ++without_progress_;
      while (!started_.empty()) {
        // Not done yet, or an error, which the computing thread reports.
        if (cudaEventQuery(started_.front().done) != cudaSuccess) break;
        cudaEventDestroy(started_.front().done);
        started_.pop_front();
        without_progress_ = 0;
      }
      if (!started_.empty()) {
        EndIfLate(without_progress_, timeout_,
                  StrCat(", in or before ", started_.front().operation));
      }
    }
  }

  ncclComm_t comm_;
  int64_t timeout_;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stop_ = false;
  std::deque<Started> started_;
  int64_t without_progress_ = 0;    // looks, since an operation was started or has finished
  std::atomic<int64_t> looks_ = 0;  // of the first thread
  std::thread thread_;
  std::jthread guard_;
};

constexpr int64_t kLeastStartSeconds = 30;  // a start in order takes seconds

class NcclCommunicator final : public Communicator {
 public:
  NcclCommunicator(std::unique_ptr<Communicator> host, int64_t timeout_seconds)
      : host_(std::move(host)), timeout_seconds_(timeout_seconds) {}
  ~NcclCommunicator() override {
    if (comm_ == nullptr) return;
    // While an error unwinds, the other ranks may never come.
    const bool in_order = std::uncaught_exceptions() == 0;
    if (in_order) cudaStreamSynchronize(stream_);  // still watched
    watch_.reset();
    const CallWatch watch("ending it", timeout_seconds_);
    if (in_order) {
      ncclCommDestroy(comm_);
    } else {
      ncclCommAbort(comm_);
    }
    cudaStreamDestroy(stream_);
  }

  int rank() const override { return host_->rank(); }
  int size() const override { return host_->size(); }

  Event AllReduce(const Tensor& tensor, ReduceOp op) override {
    if (tensor.device == Device::kCpu) return host_->AllReduce(tensor, op);
    return Start("all-reduce", [&] {
      return ncclAllReduce(tensor.raw, tensor.raw, Count(tensor), Type(tensor.dtype),
                           op == ReduceOp::kSum ? ncclSum : ncclMax, comm_, stream_);
    });
  }
  Event AllGather(const Tensor& in, const Tensor& out) override {
    if (in.device == Device::kCpu) return host_->AllGather(in, out);
    EYRIE_CHECK(out.size() == in.size() * size() && in.dtype == out.dtype);
    return Start(
        "all-gather",
        [&] { return ncclAllGather(in.raw, out.raw, Count(in), Type(in.dtype), comm_, stream_); },
        &in, &out);
  }
  Event ReduceScatter(const Tensor& in, const Tensor& out) override {
    if (in.device == Device::kCpu) return host_->ReduceScatter(in, out);
    EYRIE_CHECK(in.size() == out.size() * size() && in.dtype == out.dtype);
    return Start(
        "reduce-scatter",
        [&] {
          return ncclReduceScatter(in.raw, out.raw, Count(out), Type(in.dtype), ncclSum, comm_,
                                   stream_);
        },
        &in, &out);
  }
  Event Broadcast(const Tensor& tensor, int root) override {
    if (tensor.device == Device::kCpu) return host_->Broadcast(tensor, root);
    return Start("broadcast", [&] {
      return ncclBroadcast(tensor.raw, tensor.raw, Count(tensor), Type(tensor.dtype), root, comm_,
                           stream_);
    });
  }
  Event Exchange(const std::vector<Message>& sent, const std::vector<Message>& received) override {
    const auto& any = sent.empty() ? received : sent;
    // A rank may have nothing to say on the GPU; but all connect together.
    if (any.empty()) return size() == 1 ? Event() : (Connect(), Event());
    if (any.front().tensor.device == Device::kCpu) return host_->Exchange(sent, received);
    return Start("exchange", [&] {
      EYRIE_NCCL_CHECK(ncclGroupStart());
      for (const Message& message : sent) {
        const Tensor& tensor = message.tensor;
        EYRIE_NCCL_CHECK(
            ncclSend(tensor.raw, Count(tensor), Type(tensor.dtype), message.peer, comm_, stream_));
      }
      for (const Message& message : received) {
        const Tensor& tensor = message.tensor;
        EYRIE_NCCL_CHECK(
            ncclRecv(tensor.raw, Count(tensor), Type(tensor.dtype), message.peer, comm_, stream_));
      }
      return ncclGroupEnd();
    });
  }
  void Progress() override { host_->Progress(); }
  void Replayed() override {
    if (watch_ != nullptr) watch_->Add("a replayed step", ComputeStream());
  }
  void Barrier() override { host_->Barrier(); }

  std::unique_ptr<Communicator> Split(int color, int key) override {
    return MakeNcclCommunicator(host_->Split(color, key), timeout_seconds_);
  }
  std::unique_ptr<Communicator> SplitNode() override { return host_->SplitNode(); }

 private:
  // Orders the compute stream after the operation.
  class Pending final : public Event::Pending {
   public:
    Pending(EventPool& pool, cudaEvent_t done, cudaStream_t stream)
        : pool_(pool), done_(done), stream_(stream) {}
    ~Pending() override {
      if (std::uncaught_exceptions() == 0) Pending::Wait();
    }
    void Wait() override {
      if (done_ == nullptr) return;
      EYRIE_CUDA_CHECK(cudaStreamWaitEvent(ComputeStream(), done_));
      pool_.Give(done_);
      done_ = nullptr;
    }
    std::optional<Moment> Completion() override { return Moment(cuda::MarkStream(stream_)); }

   private:
    EventPool& pool_;
    cudaEvent_t done_;
    cudaStream_t stream_;
  };

  // Whether what the stream is given goes into a graph.
  static bool Records(cudaStream_t stream) {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    EYRIE_CUDA_CHECK(cudaStreamIsCapturing(stream, &status));
    return status != cudaStreamCaptureStatusNone;
  }

  static size_t Count(const Tensor& tensor) { return static_cast<size_t>(tensor.size()); }

  template <class Operation>
  Event Start(const char* name, const Operation& operation, const Tensor* in = nullptr,
              const Tensor* out = nullptr) {
    if (size() == 1) {
      if (in != nullptr && in->raw != out->raw) Copy(*in, *out);
      return Event();
    }
    Connect();
    cudaEvent_t ready = events_.Take();
    EYRIE_CUDA_CHECK(cudaEventRecord(ready, ComputeStream()));
    EYRIE_CUDA_CHECK(cudaStreamWaitEvent(stream_, ready));
    events_.Give(ready);
    Check(operation(), name);
    cudaEvent_t done = events_.Take();
    EYRIE_CUDA_CHECK(cudaEventRecord(done, stream_));
    // An event of a graph cannot be asked for, and asking would spoil the recording.
    if (!Records(stream_)) watch_->Add(name, stream_);
    return Event(std::make_unique<Pending>(events_, done, stream_));
  }

  // All ranks of the group come here together, with their first operation on the GPU.
  void Connect() {
    if (comm_ != nullptr) return;
    ncclUniqueId id{};
    static_assert(sizeof(id) % sizeof(int32_t) == 0);
    if (rank() == 0) EYRIE_NCCL_CHECK(ncclGetUniqueId(&id));
    const Tensor bytes{
        &id, DType::kI32, Device::kCpu, {static_cast<int64_t>(sizeof(id) / sizeof(int32_t))}};
    host_->Broadcast(bytes, 0).Wait();
    {
      const CallWatch watch("starting it", std::max(timeout_seconds_, kLeastStartSeconds));
      EYRIE_NCCL_CHECK(ncclCommInitRank(&comm_, size(), id, rank()));
    }
    int least = 0, greatest = 0;
    EYRIE_CUDA_CHECK(cudaDeviceGetStreamPriorityRange(&least, &greatest));
    EYRIE_CUDA_CHECK(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, greatest));
    int device = 0;
    EYRIE_CUDA_CHECK(cudaGetDevice(&device));
    watch_ = std::make_unique<Watch>(comm_, device, timeout_seconds_);
  }

  std::unique_ptr<Communicator> host_;
  int64_t timeout_seconds_;
  ncclComm_t comm_ = nullptr;
  cudaStream_t stream_ = nullptr;
  EventPool events_;
  std::unique_ptr<Watch> watch_;
};

}  // namespace

std::unique_ptr<Communicator> MakeNcclCommunicator(std::unique_ptr<Communicator> host,
                                                   int64_t timeout_seconds) {
  return std::make_unique<NcclCommunicator>(std::move(host), timeout_seconds);
}

}  // namespace eyrie
