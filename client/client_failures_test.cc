// What goes wrong: deadlines, restarts of the daemon, bad requests, bounds, forks, the end.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <future>
#include <thread>

#include "client/client_fixture.h"

namespace dyna {
namespace {

using std::chrono::milliseconds;

TEST_F(ClientTest, DeadlinesAreKept) {
  Open();
  daemon.Mute(wire::Type::kLookup);
  LookupRequest r;
  r.hashes = SomeHashes(1);
  r.deadline = milliseconds(30);
  EXPECT_EQ(context->Lookup(r).status().code(), StatusCode::kDeadline);
}

TEST_F(ClientTest, DeadlinesAreKeptWhileAFrameMoves) {
  Open();
  daemon.Stall();
  const std::vector<std::byte> in(16 << 20);  // more than the socket takes
  OpaquePut put;
  put.bytes = in;
  put.deadline = milliseconds(50);
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(context->PutOpaque(put).code(), StatusCode::kDeadline);
  EXPECT_LT(std::chrono::steady_clock::now() - start, milliseconds(5000));
  daemon.Resume();
  EXPECT_EQ(context->GetOpaque(SomeHashes(1)[0]).status().code(), StatusCode::kMiss);
  EXPECT_EQ(client->stats().reconnects, 1u) << "the frame could be ended in no other way";
}

TEST_F(ClientTest, NothingIsSentAfterItsDeadline) {
  daemon.request_credits = 1;
  Open(Bulk::kSocket);
  std::vector<std::byte> in(kBytes);
  std::promise<void> busy, go_on;
  LookupRequest one;
  one.hashes = SomeHashes(1);
  context->ExistsAsync(one, [&](auto) {
    busy.set_value();
    go_on.get_future().wait();  // the loop sees neither timers nor frames
  });
  busy.get_future().wait();
  std::promise<StatusCode> ended;
  std::promise<void> second;
  context->ExistsAsync(one, [&](auto) {  // has the only credit
    second.set_value();
    std::this_thread::sleep_for(milliseconds(300));
  });
  PutRequest r = PutOf(DenseAll(in.data()));
  r.deadline = milliseconds(200);
  context->PutAsync(r, [&](PutResult p) { ended.set_value(p.status.code()); });
  go_on.set_value();
  second.get_future().wait();
  EXPECT_EQ(ended.get_future().get(), StatusCode::kDeadline);
  (void)client->Query(wire::QueryKind::kStats);
  EXPECT_EQ(daemon.puts, 0);
}

TEST_F(ClientTest, WaitingForStagingHasADeadline) {
  ClientOptions o = Options();
  o.staging_bytes = 1 << 20;
  Open(o);
  daemon.Mute(wire::Type::kPut);
  std::vector<std::byte> in(kBytes);
  std::promise<void> ended;
  context->PutAsync(PutOf(TokenMajor(in.data())), [&](PutResult) { ended.set_value(); });
  PutRequest r = PutOf(TokenMajor(in.data()));
  r.deadline = milliseconds(50);
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(context->Put(r).status.code(), StatusCode::kDeadline);
  EXPECT_LT(std::chrono::steady_clock::now() - start, milliseconds(5000));
  client.reset();
  ended.get_future().wait();
}

TEST_F(ClientTest, NamedMemoryThatIsNotLetGoOfIsInDoubt) {
  Open();
  auto region = client->AllocateRegion(kBytes);
  ASSERT_TRUE(region.ok());
  daemon.Mute(wire::Type::kPut);
  PutRequest r = PutOf(DenseAll((*region)->bytes().data()));
  r.deadline = milliseconds(20);
  EXPECT_EQ(context->Put(r).status.code(), StatusCode::kInDoubt);
  daemon.Unmute();
  r = PutOf(DenseAll((*region)->bytes().data()));
  EXPECT_EQ(context->Put(r).status.code(), StatusCode::kInDoubt) << "the region is retired";
  EXPECT_EQ(client->stats().retired_region_bytes, (*region)->size());
  auto other = client->AllocateRegion(kBytes);
  ASSERT_TRUE(other.ok());
  EXPECT_TRUE(context->Put(PutOf(DenseAll((*other)->bytes().data()))).status.ok());
}

TEST_F(ClientTest, ARestartIsSurvived) {
  Open();
  auto region = client->AllocateRegion(2 * kBytes);
  ASSERT_TRUE(region.ok());
  std::byte* base = (*region)->bytes().data();
  Fill({base, kBytes}, 7);
  ASSERT_TRUE(context->Put(PutOf(DenseAll(base))).status.ok());
  const Lease before = LookupAll();
  daemon.DropConnections();
  while (!before.lost()) std::this_thread::yield();  // a call sent earlier would be cancelled
  const Lease after = LookupAll();                   // waits for the connection
  ASSERT_EQ(after.run(), kBlocks);
  EXPECT_TRUE(before.lost());
  EXPECT_EQ(FetchTo(before, DenseAll(base + kBytes)).status.code(), StatusCode::kLeaseLost);
  EXPECT_TRUE(FetchTo(after, DenseAll(base + kBytes)).status.ok());
  EXPECT_EQ(std::memcmp(base, base + kBytes, kBytes), 0);
  EXPECT_EQ(daemon.opens, 2);
  EXPECT_EQ(daemon.registers, 2);
  EXPECT_EQ(client->info().instance_id, 2u);
  EXPECT_EQ(client->stats().reconnects, 1u);
}

TEST_F(ClientTest, WhatWasInFlightIsCancelled) {
  Open();
  daemon.Mute(wire::Type::kLookup);
  std::promise<StatusCode> code;
  LookupRequest r;
  r.hashes = SomeHashes(1);
  context->LookupAsync(r, [&](Result<Lease> l) { code.set_value(l.status().code()); });
  client->stats();  // the lookup has been sent
  daemon.DropConnections();
  EXPECT_EQ(code.get_future().get(), StatusCode::kCancelled);
}

TEST_F(ClientTest, WithoutReconnectTheFirstLossEndsEveryCall) {
  daemon.request_credits = 1;
  ClientOptions o = Options();
  o.reconnect = false;
  Open(o);
  const auto start = std::chrono::steady_clock::now();
  daemon.Mute(wire::Type::kLookup);
  std::promise<StatusCode> in_flight, queued;
  LookupRequest r;
  r.hashes = SomeHashes(1);
  context->LookupAsync(r, [&](auto l) { in_flight.set_value(l.status().code()); });
  context->LookupAsync(r, [&](auto l) { queued.set_value(l.status().code()); });
  client->stats();  // both are where they should be
  daemon.DropConnections();
  EXPECT_EQ(in_flight.get_future().get(), StatusCode::kCancelled);
  EXPECT_EQ(queued.get_future().get(), StatusCode::kCancelled);
  const Status later = context->Exists(r).status();
  EXPECT_EQ(later.code(), StatusCode::kCancelled);
  EXPECT_NE(later.message().find("connection"), std::string_view::npos) << later.ToString();
  std::vector<std::byte> in(kBytes);
  EXPECT_EQ(context->Put(PutOf(DenseAll(in.data()))).status.code(), StatusCode::kCancelled);
  EXPECT_EQ(client->AllocateRegion(4096).status().code(), StatusCode::kCancelled);
  EXPECT_LT(std::chrono::steady_clock::now() - start, milliseconds(10'000));
}

TEST_F(ClientTest, ALeaseThatCameTooLateIsReleased) {
  Open();
  std::vector<std::byte> in(kBytes);
  ASSERT_TRUE(context->Put(PutOf(DenseAll(in.data()))).status.ok());
  daemon.Stall();
  LookupRequest r;
  r.hashes = SomeHashes(kBlocks);
  r.deadline = milliseconds(30);
  EXPECT_EQ(context->Lookup(r).status().code(), StatusCode::kDeadline);
  daemon.Resume();
  (void)client->Query(wire::QueryKind::kStats);  // the lease came before this answer
  (void)client->Query(wire::QueryKind::kStats);
  EXPECT_EQ(daemon.releases, 1);
}

TEST_F(ClientTest, CleaningUpIsNeverOneCallTooMany) {
  ClientOptions o = Options();
  o.max_calls = 4;
  Open(o);
  std::vector<std::byte> in(kBytes);
  ASSERT_TRUE(context->Put(PutOf(DenseAll(in.data()))).status.ok());
  Lease lease = LookupAll();
  auto region = client->AllocateRegion(4096);
  ASSERT_TRUE(region.ok());
  daemon.Mute(wire::Type::kLookup);
  std::vector<std::promise<void>> ended(4);
  for (auto& e : ended) {
    LookupRequest r;
    r.hashes = SomeHashes(1);
    r.deadline = milliseconds(300);
    context->LookupAsync(r, [&](const auto&) { e.set_value(); });
  }
  lease.Release();
  region->reset();
  for (auto& e : ended) e.get_future().wait();
  (void)client->Query(wire::QueryKind::kStats);
  EXPECT_EQ(daemon.releases, 1);
  EXPECT_EQ(daemon.deregisters, 1);
}

TEST_F(ClientTest, LeasesAreReleasedAndRevoked) {
  Open();
  std::vector<std::byte> in(kBytes);
  ASSERT_TRUE(context->Put(PutOf(DenseAll(in.data()))).status.ok());
  { const Lease lease = LookupAll(); }
  Lease lease = LookupAll();  // its answer comes after the release's
  EXPECT_EQ(daemon.releases, 1);
  daemon.RevokeLeases();
  (void)client->Query(wire::QueryKind::kStats);  // the push came before this answer
  EXPECT_TRUE(lease.lost());
  EXPECT_EQ(FetchTo(lease, DenseAll(in.data())).status.code(), StatusCode::kLeaseLost);
  Lease moved = std::move(lease);
  moved.Release();
  EXPECT_EQ(moved.run(), 0u);
  EXPECT_EQ(FetchTo(moved, DenseAll(in.data())).status.code(), StatusCode::kInvalid);
}

TEST_F(ClientTest, ARegionIsDeregisteredWithItsLastPointer) {
  Open();
  { auto region = client->AllocateRegion(4096); }
  (void)client->Query(wire::QueryKind::kStats);
  EXPECT_EQ(daemon.deregisters, 1);
  EXPECT_EQ(client->stats().regions, 0u);
}

TEST_F(ClientTest, OpaqueObjects) {
  Open();
  std::vector<std::byte> in(1'000'003);
  Fill(in, 8);
  const BlockHash key = SomeHashes(1)[0];
  OpaquePut put;
  put.key = key;
  put.bytes = in;
  ASSERT_TRUE(context->PutOpaque(put).ok());
  auto got = context->GetOpaque(key);
  ASSERT_TRUE(got.ok());
  EXPECT_EQ(got->bytes, in);
  EXPECT_EQ(context->GetOpaque(SomeHashes(1, 99)[0]).status().code(), StatusCode::kMiss);
}

TEST_F(ClientTest, BadRequestsNameTheirField) {
  Open();
  std::vector<std::byte> in(kBytes);
  auto expect = [&](auto change, std::string_view word) {
    PutRequest r = PutOf(DenseAll(in.data()));
    change(r);
    const Status s = context->Put(r).status;
    EXPECT_EQ(s.code(), StatusCode::kInvalid) << word;
    EXPECT_NE(s.message().find(word), std::string_view::npos) << s.ToString();
  };
  expect([](PutRequest& r) { r.shard = {0, 9, 0, 3}; }, "shard");
  expect(
      [](PutRequest& r) {
        r.layer_begin = 4;
        r.layer_count = 2;
      },
      "layer");
  expect([](PutRequest& r) { r.source.k[0] = nullptr; }, "null");
  expect([](PutRequest& r) { r.hashes.pop_back(); }, "segments");
  expect([](PutRequest& r) { r.hashes.clear(); }, "block");
  ContextSpec bad = Spec();
  bad.layers[2].head_dim = 40;
  EXPECT_EQ(client->OpenContext(bad).status().code(), StatusCode::kInvalid);
}

TEST_F(ClientTest, TooManyCallsAtOnceAreRefused) {
  ClientOptions o = Options();
  o.max_calls = 4;
  Open(o);
  daemon.Mute(wire::Type::kLookup);
  std::atomic<int> retry{0}, other{0};
  std::vector<std::promise<void>> ended(10);
  for (auto& e : ended) {
    LookupRequest r;
    r.hashes = SomeHashes(1);
    r.deadline = milliseconds(50);
    context->LookupAsync(r, [&](Result<Lease> l) {
      (l.status().code() == StatusCode::kRetry ? retry : other)++;
      e.set_value();
    });
  }
  for (auto& e : ended) e.get_future().wait();
  EXPECT_EQ(other, 4);
  EXPECT_EQ(retry, 6);
}

TEST_F(ClientTest, BlockingInsideACallbackIsRefused) {
  Open();
  std::promise<StatusCode> code;
  LookupRequest r;
  r.hashes = SomeHashes(1);
  context->ExistsAsync(r, [&](auto) { code.set_value(context->Exists(r).status().code()); });
  EXPECT_EQ(code.get_future().get(), StatusCode::kInvalid);
}

TEST_F(ClientTest, AForkedChildIsTold) {
  Open();
  const pid_t child = fork();
  if (child == 0) {
    LookupRequest r;
    r.hashes = SomeHashes(1);
    const bool told = context->Exists(r).status().code() == StatusCode::kUnsupported;
    client.reset();
    context.reset();
    _exit(told ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(WEXITSTATUS(status), 0);
  LookupRequest r;
  r.hashes = SomeHashes(1);
  EXPECT_TRUE(context->Exists(r).ok());  // the parent goes on
}

TEST_F(ClientTest, ClosingEndsEveryCallOnce) {
  Open();
  daemon.Mute(wire::Type::kLookup);
  std::atomic<int> ended{0};
  for (int i = 0; i < 20; ++i) {
    LookupRequest r;
    r.hashes = SomeHashes(1);
    context->LookupAsync(r, [&](Result<Lease> l) {
      EXPECT_EQ(l.status().code(), StatusCode::kCancelled);
      ++ended;
    });
  }
  client.reset();
  EXPECT_EQ(ended, 20);
  EXPECT_EQ(LookupRequest{}.hashes.size(), 0u);
  EXPECT_EQ(context->Clear().status().code(), StatusCode::kCancelled);
}

TEST(ClientConnect, NobodyThere) {
  ClientOptions o;
  o.endpoint = "/tmp/dyna_nobody_listens_here.sock";
  const auto c = Client::Connect(o);
  ASSERT_FALSE(c.ok());
  EXPECT_EQ(c.status().code(), StatusCode::kCancelled);
  EXPECT_NE(c.status().message().find(o.endpoint), std::string_view::npos);
}

}  // namespace
}  // namespace dyna
