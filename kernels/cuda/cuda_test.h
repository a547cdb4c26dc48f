// For tests: both backends, and random numbers whose seed is printed; skipped without a GPU.
#pragma once

#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>

#include "kernels/cuda/cuda_backend.h"
#include "tests/support/seed.h"

namespace dyna::testing {

class CudaTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto cuda = MakeCudaBackend();
    if (!cuda.ok()) {
      ASSERT_EQ(cuda.status().code(), StatusCode::kUnsupported) << cuda.status().ToString();
      GTEST_SKIP() << cuda.status().ToString();
    }
    cuda_ = std::move(*cuda);
    cpu_ = std::move(*MakeCpuBackend());
    random_.seed(testing::TestSeed());
    few_ = std::getenv("DYNA_FEW_TILES") != nullptr;
  }
  int Int(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }

  std::unique_ptr<Backend> cuda_, cpu_;
  std::mt19937 random_;
  bool few_ = false;  // under a checker that makes everything slow
};

}  // namespace dyna::testing
