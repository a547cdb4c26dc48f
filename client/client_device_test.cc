// K and V on a GPU, and a daemon that has none: everything works, through the host.
#include <algorithm>

#include "client/client_fixture.h"
#include "client/testing_driver.h"

namespace dyna {
namespace {

class ClientDeviceTest : public ClientTest {
 protected:
  ClientDeviceTest() : memory_(kBytes), driver_(&memory_) { Fill(memory_.bytes(), 1); }
  void OpenWith(Bulk bulk) {
    ClientOptions options = Options(bulk);
    options.device_api = &driver_;
    Open(options);
  }
  KvMemory OnDevice() {
    KvMemory kv = TokenMajor(memory_.device());
    kv.on_device = true;
    kv.stream = &driver_;  // any address
    return kv;
  }
  void ExpectRoundTrip(wire::Form form) {
    std::vector<std::byte> put(memory_.bytes().begin(), memory_.bytes().end());
    const PutResult done = context->Put(PutOf(OnDevice()));
    ASSERT_TRUE(done.status.ok()) << done.status.ToString();
    EXPECT_EQ(driver_.waits, 1);
    EXPECT_EQ(driver_.waited, &driver_);
    std::fill(memory_.bytes().begin(), memory_.bytes().end(), std::byte{0});
    const Lease lease = LookupAll();
    const FetchResult got = FetchTo(lease, OnDevice(), form);
    ASSERT_TRUE(got.status.ok()) << got.status.ToString();
    EXPECT_EQ(driver_.waits, 2);
    if (form == wire::Form::kAsStored) {  // coded: what the host gets of it
      ASSERT_TRUE(FetchTo(lease, TokenMajor(put.data()), form).status.ok());
    }
    EXPECT_TRUE(std::equal(put.begin(), put.end(), memory_.bytes().begin()));
  }

  testing::FakeMemory memory_;
  testing::FakeDriver driver_;
};

TEST_F(ClientDeviceTest, ADaemonWithoutAGpuSaysSoAndIsServedThroughTheHost) {
  OpenWith(Bulk::kAuto);
  const auto region = client->RegisterGpu(memory_.device(), kBytes);
  EXPECT_EQ(region.status().code(), StatusCode::kUnsupported);
  EXPECT_NE(region.status().message().find("through the host"), std::string::npos)
      << region.status().ToString();
  EXPECT_EQ(daemon.registers, 0);  // it was not even asked
  ExpectRoundTrip(wire::Form::kDecoded);
  EXPECT_EQ(client->stats().bytes_staged, 2 * kBytes);
}

TEST_F(ClientDeviceTest, FramesAreCopiedThroughTheHost) {
  OpenWith(Bulk::kSocket);
  ExpectRoundTrip(wire::Form::kDecoded);
}

TEST_F(ClientDeviceTest, WhatComesAsStoredIsDecodedAndCopiedThere) {
  OpenWith(Bulk::kAuto);
  ExpectRoundTrip(wire::Form::kAsStored);
}

TEST_F(ClientDeviceTest, MemoryWithoutAHandleIsRefusedWithItsReason) {
  OpenWith(Bulk::kAuto);
  driver_.no_handle = true;
  const auto region = client->RegisterGpu(memory_.device(), kBytes);
  EXPECT_EQ(region.status().code(), StatusCode::kUnsupported);
  EXPECT_EQ(region.status().message(), "memory: it has no handle");
}

TEST_F(ClientDeviceTest, ACopyThatFailsEndsTheCall) {
  OpenWith(Bulk::kAuto);
  memory_.failing = true;
  EXPECT_EQ(context->Put(PutOf(OnDevice())).status.code(), StatusCode::kInternal);
  memory_.failing = false;
  ASSERT_TRUE(context->Put(PutOf(OnDevice())).status.ok());
  const Lease lease = LookupAll();
  memory_.failing = true;
  EXPECT_EQ(FetchTo(lease, OnDevice()).status.code(), StatusCode::kInternal);
}

TEST_F(ClientDeviceTest, WithoutADriverTheCallSaysSo) {
  if (CudaDriver().Wait(memory_.device(), nullptr).code() != StatusCode::kUnsupported)
    GTEST_SKIP() << "there is a CUDA driver";
  Open();
  const auto region = client->RegisterGpu(memory_.device(), kBytes);
  EXPECT_EQ(region.status().code(), StatusCode::kUnsupported);
  EXPECT_EQ(context->Put(PutOf(OnDevice())).status.code(), StatusCode::kUnsupported);
}

}  // namespace
}  // namespace dyna
