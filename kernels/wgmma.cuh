// Hopper's warpgroup products (wgmma, sm_90a alone) and bulk copies (TMA), as thin wrappers of PTX.
//
// A warpgroup is 128 threads. Its products are D [64, N] += A [64, 16] B [16, N], A in registers as
// mma.m16n8k16 has it (warp w: rows 16 w and on), D as that has its accumulators, 8 columns after
// 8, and B in shared memory where a descriptor says. They run in the background: between
// WgmmaFence() and the WgmmaWait() that covers them nobody may touch D, nor overwrite A.
//
// Operands in shared memory are what a bulk copy leaves of a box of 64 elements by any number of
// rows: rows of 128 bytes whose 16-byte chunk c of row r lies at c ^ r % 8, from a multiple of 1024
// bytes on. Boxes of 32 or 16 elements have rows of 64 or 32 bytes and a narrower swizzle.
#pragma once

#include <cuda.h>

#include "kernels/cluster.cuh"

namespace eyrie {

// Whether `kernel`, of a source file that is compiled for sm_90a where that is asked for
// (EYRIE_SM90A), runs warpgroup products on this GPU. Code for plain sm_90 has none, and looks
// alike.
template <class Kernel>
bool RunsWgmma(Kernel kernel) {
#ifdef EYRIE_SM90A
  static const bool runs = [&] {
    int device = 0;
    cudaDeviceProp properties{};
    EYRIE_CUDA_CHECK(cudaGetDevice(&device));
    EYRIE_CUDA_CHECK(cudaGetDeviceProperties(&properties, device));
    return properties.major == 9 && CompiledForHopper(kernel);
  }();
  return runs;
#else
  static_cast<void>(kernel);
  return false;
#endif
}

// One lane arrives at a barrier for its warp. compute-sanitizer's racecheck takes that for the
// lane's own arrival alone: for it, all lanes arrive (CMake's option EYRIE_RACECHECK).
#ifdef EYRIE_RACECHECK
inline constexpr int kArrivingLanes = 32;
#else
inline constexpr int kArrivingLanes = 1;
#endif

// The barrier of a buffer that may be filled again once as many warps said that they do not read
// it. The bulk copies that fill it complete on a FillBarrier.
struct FreeBarrier {
  static __device__ __forceinline__ void Init(uint32_t address, int warps) {
    InitBarrier(address, warps * kArrivingLanes);
  }
  // For whole warps, as the following.
  static __device__ __forceinline__ void Arrive(uint32_t address) {
    __syncwarp();
    if (threadIdx.x % 32 >= kArrivingLanes) return;
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(address) : "memory");
  }
  // At the barriers that lie at this address in each of a cluster's `blocks` blocks.
  static __device__ __forceinline__ void ArriveInAll(uint32_t address, int blocks) {
    __syncwarp();
    const int lane = static_cast<int>(threadIdx.x) % 32;
    if constexpr (kArrivingLanes == 1) {
      if (lane < blocks) ArriveAt(address, lane);
    } else {
      for (int rank = 0; rank < blocks; ++rank) ArriveAt(address, rank);
    }
  }

 private:
  static __device__ __forceinline__ void ArriveAt(uint32_t address, int rank) {
    uint32_t remote;
    asm("mapa.shared::cluster.u32 %0, %1, %2;\n" : "=r"(remote) : "r"(address), "r"(rank));
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];\n" ::"r"(remote) : "memory");
  }
};
// Whether a phase of either kind of barrier is over, without waiting.
__device__ __forceinline__ bool PhaseIsOver(uint32_t address, int parity) {
  uint32_t done;
  asm volatile(
      "{\n.reg .pred p;\n"
      "mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n}\n"
      : "=r"(done)
      : "r"(address), "r"(parity)
      : "memory");
  return done != 0;
}

// What this thread wrote to shared memory is there for bulk copies and products that are started
// after a barrier.
__device__ __forceinline__ void FenceForBulkCopies() {
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}
// A barrier of the threads that name it: `threads` of them, whole warps.
__device__ __forceinline__ void NamedBarrier(int name, int threads) {
  asm volatile("bar.sync %0, %1;\n" ::"r"(name), "r"(threads) : "memory");
}
// Counts as this thread's part of one, without waiting.
__device__ __forceinline__ void ArriveAtNamedBarrier(int name, int threads) {
  asm volatile("bar.arrive %0, %1;\n" ::"r"(name), "r"(threads) : "memory");
}

// A box of the mapped tensor, at coordinates with the innermost first, to shared memory; its bytes
// count at `barrier`, also those out of bounds, which become zeros.
__device__ __forceinline__ void LoadBox(uint32_t to, const CUtensorMap& map, uint32_t barrier,
                                        int c0, int c1) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4}], [%2];\n" ::"r"(to),
      "l"(&map), "r"(barrier), "r"(c0), "r"(c1)
      : "memory");
}
__device__ __forceinline__ void LoadBox(uint32_t to, const CUtensorMap& map, uint32_t barrier,
                                        int c0, int c1, int c2) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5}], [%2];\n" ::"r"(to),
      "l"(&map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2)
      : "memory");
}
__device__ __forceinline__ void LoadBox(uint32_t to, const CUtensorMap& map, uint32_t barrier,
                                        int c0, int c1, int c2, int c3) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5, %6}], [%2];\n" ::"r"(to),
      "l"(&map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
      : "memory");
}
// To the same place in all blocks of the cluster that have a bit in `blocks`, at whose barriers at
// this address the bytes count.
__device__ __forceinline__ void LoadBoxInto(uint16_t blocks, uint32_t to, const CUtensorMap& map,
                                            uint32_t barrier, int c0, int c1, int c2, int c3) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%4, %5, %6, %7}], [%2], %3;\n" ::"r"(to),
      "l"(&map), "r"(barrier), "h"(blocks), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
      : "memory");
}
// Contiguous bytes, a multiple of 16.
__device__ __forceinline__ void LoadBytes(uint32_t to, const void* from, uint32_t bytes,
                                          uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];\n" ::
          "r"(to),
      "l"(from), "r"(bytes), "r"(barrier)
      : "memory");
}
// The other way; what is out of bounds is left out.
__device__ __forceinline__ void StoreBox(const CUtensorMap& map, uint32_t from, int c0, int c1,
                                         int c2, int c3) {
  asm volatile(
      "cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5}], [%1];\n" ::"l"(
          &map),
      "r"(from), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
      : "memory");
  asm volatile("cp.async.bulk.commit_group;\n" ::: "memory");
}
// Until this thread's stores have read shared memory.
__device__ __forceinline__ void WaitUntilStoresRead() {
  asm volatile("cp.async.bulk.wait_group.read 0;\n" ::: "memory");
}

// Four matrices [8, 8] of packed accumulators, each stored transposed: rows at the lanes' addresses
// are columns of the accumulators.
__device__ __forceinline__ void StoreMatricesTransposed(uint32_t address,
                                                        const uint32_t (&from)[4]) {
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};\n" ::"r"(address),
      "r"(from[0]), "r"(from[1]), "r"(from[2]), "r"(from[3])
      : "memory");
}

// The sum over the eight lanes that have columns of accumulators in common.
__device__ __forceinline__ float ColumnSum(float x) {
  for (int lane = 16; lane >= 4; lane /= 2) x += __shfl_xor_sync(0xffffffffu, x, lane);
  return x;
}

// Takes registers from, or leaves them to, the other warpgroups of the block.
template <int kRegisters>
__device__ __forceinline__ void RaiseRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void LowerRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}

// Descriptors of operands out of boxes with rows of kRow bytes, which name the swizzle. `address`
// is a multiple of 8 rows.
template <int kRow>
__device__ __forceinline__ uint64_t BoxDescriptor(uint32_t address, uint32_t leading,
                                                  uint32_t stride) {
  static_assert(kRow == 128 || kRow == 64 || kRow == 32);
  constexpr uint64_t kSwizzle = kRow == 128 ? 1 : kRow == 64 ? 2 : 3;
  return static_cast<uint64_t>((address & 0x3ffff) >> 4) |
         static_cast<uint64_t>(leading >> 4) << 16 | static_cast<uint64_t>(stride >> 4) << 32 |
         kSwizzle << 62;
}
// B [16, N] = rows^T: its columns are rows of a box, the inner index, from multiple of 16 `step`
// on, lies along these ("K-major"). Likewise A [64, 16], whose rows are rows of a box.
template <int kRow>
__device__ __forceinline__ uint64_t RowsDescriptor(uint32_t box, int step) {
  return BoxDescriptor<kRow>(box + step * 32, 16, 8 * kRow);
}
// B [16, N]: rows 16 `step` and on of boxes side by side, `box_bytes` after each other
// ("MN-major"). Likewise A [64, 16], with "columns" for its rows.
template <int kRow>
__device__ __forceinline__ uint64_t ColumnsDescriptor(uint32_t box, int step, uint32_t box_bytes) {
  return BoxDescriptor<kRow>(box + step * 16 * kRow, box_bytes, 8 * kRow);
}
// The descriptor of what lies `bytes` further on.
__device__ __forceinline__ uint64_t Further(uint64_t descriptor, uint32_t bytes) {
  const uint32_t low = static_cast<uint32_t>(descriptor) + (bytes >> 4);
  return (descriptor >> 32 << 32) | low;
}

// Orders what this thread did to registers before the products that follow.
__device__ __forceinline__ void WgmmaFence() {
  asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
}
// Closes a group of products.
__device__ __forceinline__ void WgmmaCommit() {
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}
// Until at most kPending groups are unfinished.
template <int kPending>
__device__ __forceinline__ void WgmmaWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kPending) : "memory");
}
// Holds registers in their place until here: of operands A, descriptors, and accumulators.
__device__ __forceinline__ void Hold(uint32_t (&a)[4]) {
  asm volatile("" : "+r"(a[0]), "+r"(a[1]), "+r"(a[2]), "+r"(a[3])::"memory");
}
__device__ __forceinline__ void Hold(uint64_t& descriptor) {
  asm volatile("" : "+l"(descriptor)::"memory");
}
template <int kGroups>
__device__ __forceinline__ void Hold(float (&d)[kGroups][4]) {
#pragma unroll
  for (int i = 0; i < kGroups; ++i) {
    asm volatile("" : "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])::"memory");
  }
}

// D (+)= A B for the N below, A in registers or in shared memory; outer-major is an operand that a
// ColumnsDescriptor names. Without `accumulates` D is overwritten. The numbers after N are those of
// the operands behind D's N / 2.
#define EYRIE_OUT_1(d, i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
#define EYRIE_OUT_2(d, i) EYRIE_OUT_1(d, i), EYRIE_OUT_1(d, i + 1)
#define EYRIE_OUT_4(d, i) EYRIE_OUT_2(d, i), EYRIE_OUT_2(d, i + 2)
#define EYRIE_OUT_8(d, i) EYRIE_OUT_4(d, i), EYRIE_OUT_4(d, i + 4)
#define EYRIE_OUT_16(d, i) EYRIE_OUT_8(d, i), EYRIE_OUT_8(d, i + 8)
#define EYRIE_REGISTERS_8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define EYRIE_REGISTERS_16 \
  EYRIE_REGISTERS_8        \
  ", %8, %9, %10, %11, %12, %13, %14, %15"
#define EYRIE_REGISTERS_24 \
  EYRIE_REGISTERS_16       \
  ", %16, %17, %18, %19, %20, %21, %22, %23"
#define EYRIE_REGISTERS_32 \
  EYRIE_REGISTERS_24       \
  ", %24, %25, %26, %27, %28, %29, %30, %31"
#define EYRIE_REGISTERS_40 \
  EYRIE_REGISTERS_32       \
  ", %32, %33, %34, %35, %36, %37, %38, %39"
#define EYRIE_REGISTERS_48 \
  EYRIE_REGISTERS_40       \
  ", %40, %41, %42, %43, %44, %45, %46, %47"
#define EYRIE_REGISTERS_64 \
  EYRIE_REGISTERS_48       \
  ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define EYRIE_REGISTERS_88                                                           \
  EYRIE_REGISTERS_64                                                                 \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79" \
  ", %80, %81, %82, %83, %84, %85, %86, %87"
#define EYRIE_REGISTERS_128                                                        \
  EYRIE_REGISTERS_88                                                               \
  ", %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102" \
  ", %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115" \
  ", %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define EYRIE_WGMMA(n, registers, r0, r1, r2, r3, r4, r5, r6, ...)                                \
  template <bool kOuterMajor>                                                                     \
  __device__ __forceinline__ void Wgmma(float(&d)[n / 8][4], const uint32_t(&a)[4], uint64_t b,   \
                                        bool accumulates) {                                       \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #r5                                         \
                 ", 0;\n"                                                                         \
                 "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" registers           \
                 "}, "                                                                            \
                 "{%" #r0 ", %" #r1 ", %" #r2 ", %" #r3 "}, %" #r4 ", p, 1, 1, %" #r6 ";\n}\n"    \
                 : __VA_ARGS__                                                                    \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b),                            \
                   "r"(static_cast<int>(accumulates)), "n"(kOuterMajor ? 1 : 0)                   \
                 : "memory");                                                                     \
  }                                                                                               \
  template <bool kOuterMajorA, bool kOuterMajorB>                                                 \
  __device__ __forceinline__ void Wgmma(float(&d)[n / 8][4], uint64_t a, uint64_t b,              \
                                        bool accumulates) {                                       \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #r2                                         \
                 ", 0;\n"                                                                         \
                 "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" registers           \
                 "}, "                                                                            \
                 "%" #r0 ", %" #r1 ", p, 1, 1, %" #r3 ", %" #r4 ";\n}\n"                          \
                 : __VA_ARGS__                                                                    \
                 : "l"(a), "l"(b), "r"(static_cast<int>(accumulates)), "n"(kOuterMajorA ? 1 : 0), \
                   "n"(kOuterMajorB ? 1 : 0)                                                      \
                 : "memory");                                                                     \
  }
EYRIE_WGMMA(16, EYRIE_REGISTERS_8, 8, 9, 10, 11, 12, 13, 14, EYRIE_OUT_2(d, 0))
EYRIE_WGMMA(32, EYRIE_REGISTERS_16, 16, 17, 18, 19, 20, 21, 22, EYRIE_OUT_4(d, 0))
EYRIE_WGMMA(48, EYRIE_REGISTERS_24, 24, 25, 26, 27, 28, 29, 30, EYRIE_OUT_4(d, 0),
            EYRIE_OUT_2(d, 4))
EYRIE_WGMMA(64, EYRIE_REGISTERS_32, 32, 33, 34, 35, 36, 37, 38, EYRIE_OUT_8(d, 0))
EYRIE_WGMMA(80, EYRIE_REGISTERS_40, 40, 41, 42, 43, 44, 45, 46, EYRIE_OUT_8(d, 0),
            EYRIE_OUT_2(d, 8))
EYRIE_WGMMA(96, EYRIE_REGISTERS_48, 48, 49, 50, 51, 52, 53, 54, EYRIE_OUT_8(d, 0),
            EYRIE_OUT_4(d, 8))
EYRIE_WGMMA(128, EYRIE_REGISTERS_64, 64, 65, 66, 67, 68, 69, 70, EYRIE_OUT_16(d, 0))
EYRIE_WGMMA(176, EYRIE_REGISTERS_88, 88, 89, 90, 91, 92, 93, 94, EYRIE_OUT_16(d, 0),
            EYRIE_OUT_4(d, 16), EYRIE_OUT_2(d, 20))
EYRIE_WGMMA(256, EYRIE_REGISTERS_128, 128, 129, 130, 131, 132, 133, 134, EYRIE_OUT_16(d, 0),
            EYRIE_OUT_16(d, 16))
#undef EYRIE_REGISTERS_8
#undef EYRIE_REGISTERS_16
#undef EYRIE_REGISTERS_24
#undef EYRIE_REGISTERS_32
#undef EYRIE_REGISTERS_40
#undef EYRIE_REGISTERS_48
#undef EYRIE_REGISTERS_64
#undef EYRIE_REGISTERS_88
#undef EYRIE_REGISTERS_128
#undef EYRIE_WGMMA
#undef EYRIE_OUT_1
#undef EYRIE_OUT_2
#undef EYRIE_OUT_4
#undef EYRIE_OUT_8
#undef EYRIE_OUT_16

}  // namespace eyrie
