// Thread-block clusters (compute capability 9.0): blocks that run at the same time and reach each
// other's shared memory. Device code for older ones must not get here.
#pragma once

#include "kernels/mma.cuh"

namespace eyrie {

// Every thread of every block of the cluster arrives, then waits for all others; what they wrote to
// any block's shared memory before is there after.
__device__ __forceinline__ void ClusterBarrier() {
  asm volatile("barrier.cluster.arrive.release.aligned;\n" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;\n" ::: "memory");
}
// This block's place in its cluster.
__device__ __forceinline__ int ClusterRank() {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;\n" : "=r"(rank));
  return static_cast<int>(rank);
}

// A barrier at this address of the block's shared memory, each phase of which takes so many
// arrivals.
__device__ __forceinline__ void InitBarrier(uint32_t address, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(address), "r"(arrivals)
               : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
}
// Until a phase is over; phases have parities 0, 1, 0, ..., and one before the first, of parity 1,
// is over from the start.
__device__ __forceinline__ void WaitForPhase(uint32_t address, int parity) {
  uint32_t done = 0;
  while (done == 0) {
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}\n"
        : "=r"(done)
        : "r"(address), "r"(parity)
        : "memory");
  }
}

// The barrier of a buffer that other blocks fill, each phase with a number of bytes known before:
// no thread but those that read the buffer waits for anyone. A phase is armed once, by one thread,
// after the phase before it is over; bytes may come earlier than that.
struct FillBarrier {
  static __device__ __forceinline__ void Init(uint32_t address) { InitBarrier(address, 1); }
  static __device__ __forceinline__ void Arm(uint32_t address, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(address),
                 "r"(bytes)
                 : "memory");
  }
};
// Writes 16 bytes to an address of this block's shared memory, but in block `rank`, and counts them
// at the barrier there.
__device__ __forceinline__ void StoreRemote(uint32_t address, uint32_t barrier, int rank,
                                            uint4 value) {
  uint32_t remote, remote_barrier;
  asm("mapa.shared::cluster.u32 %0, %1, %2;\n" : "=r"(remote) : "r"(address), "r"(rank));
  asm("mapa.shared::cluster.u32 %0, %1, %2;\n" : "=r"(remote_barrier) : "r"(barrier), "r"(rank));
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, "
      "[%5];\n" ::"r"(remote),
      "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w), "r"(remote_barrier)
      : "memory");
}

// A launch of clusters of `cluster` blocks along x.
template <class View>
class ClusterLaunch {
 public:
  ClusterLaunch(void (*kernel)(View), unsigned cluster, dim3 grid, unsigned threads, size_t shared)
      : kernel_(kernel) {
    attribute_.id = cudaLaunchAttributeClusterDimension;
    attribute_.val.clusterDim.x = cluster;
    attribute_.val.clusterDim.y = attribute_.val.clusterDim.z = 1;
    config_.gridDim = grid;
    config_.blockDim = dim3(threads);
    config_.dynamicSmemBytes = shared;
    config_.stream = ComputeStream();
    config_.attrs = &attribute_;
    config_.numAttrs = 1;
    AllowSharedMemory(kernel, shared);
    EYRIE_CUDA_CHECK(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  }
  ClusterLaunch(const ClusterLaunch&) = delete;
  ClusterLaunch& operator=(const ClusterLaunch&) = delete;

  // How many such clusters the GPU can hold.
  int MostAtOnce() const {
    int clusters = 0;
    EYRIE_CUDA_CHECK(cudaOccupancyMaxActiveClusters(&clusters, kernel_, &config_));
    return clusters;
  }
  bool Fits() const { return MostAtOnce() > 0; }
  void Run(const char* name, const View& view) const {
    CheckCuda(cudaLaunchKernelEx(&config_, kernel_, view), name);
  }

 private:
  void (*kernel_)(View);
  cudaLaunchAttribute attribute_{};
  cudaLaunchConfig_t config_{};
};

}  // namespace eyrie
