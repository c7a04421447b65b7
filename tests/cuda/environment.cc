// A test that waits for the GPU sleeps: tests under compute-sanitizer run many at once, and the
// threads that follow their kernels need the cores.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

namespace {

class WaitsSleep : public testing::Environment {
  void SetUp() override {
    ASSERT_EQ(cudaSetDeviceFlags(cudaDeviceScheduleBlockingSync), cudaSuccess);
  }
};
const testing::Environment* const kWaitsSleep = testing::AddGlobalTestEnvironment(new WaitsSleep);

}  // namespace
