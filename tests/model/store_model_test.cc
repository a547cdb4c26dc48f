// The store under random operations against an oracle (oracle.h): right bytes or a miss, never
// wrong ones; what was acknowledged persistent is never lost; what was deleted stays deleted; and
// when everything is deleted nothing is left on any account.
//
// DYNA_TEST_SEED repeats one run, DYNA_TRACE=1 tells what happens in it; DYNA_LONG=1 does many
// more.
#include <gtest/gtest.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>

#include "tests/model/model.h"

namespace dyna::model {

using std::chrono::milliseconds;

void Model::Run(int operations) {
  for (int i = 0; i < operations && !::testing::Test::HasFailure(); ++i) {
    SCOPED_TRACE("operation " + std::to_string(i));
    operation_ = i;
    Operate();
    Progress();
    if (Chance(60)) Quiet();
  }
  if (!::testing::Test::HasFailure()) Finish();
}

void Model::Operate() {
  const uint64_t action = Roll(100);
  if (action < 34) return Put();
  if (action < 54) return Look();
  if (action < 70) return Fetch();
  if (action < 75) return Release();
  if (action < 80) return Delete();
  if (action < 83) return Pin();
  if (action < 86) return Report();
  if (action < 89) return OpaqueOnes();
  if (action < 92) return Press();
  if (action < 95) return Disks();
  switch (Roll(6)) {
    case 0:
      s_.clock.Advance(milliseconds(Chance(4) ? 35'000 : Roll(3000)));
      break;
    case 1:
      CloseSession();
      break;
    case 2:
      BankDrop();
      break;
    case 3:
      if (Chance(4)) Clear();
      break;
    case 4:
      Crash();
      break;
    case 5:
      Stop();
      break;
  }
}

void Model::Say(const std::string& what, uint64_t b, const std::string& more) const {
  if (!tracing_) return;
  const record::BlockKey key{s_.caller.tenant, s_.context, Name(b)};
  std::printf("%d: %s %d v%d%s%s %s\n", operation_, what.c_str(), static_cast<int>(b),
              b < kBlocks ? static_cast<int>(truth_[b].version) : 0,
              s_.spill_disk->blocks.count(key) ? " in spill" : "",
              s_.bank_disk->blocks.count(key) ? " in bank" : "", more.c_str());
}

namespace {

void RunSeeds(bool faults) {
  const char* given = std::getenv("DYNA_TEST_SEED");
  const char* is_long = std::getenv("DYNA_LONG");
  const bool many = is_long != nullptr && std::atoi(is_long) != 0;
  const uint64_t first =
      given != nullptr ? std::strtoull(given, nullptr, 0) : std::random_device{}();
  const uint64_t runs = given != nullptr ? 1 : many ? 600 : 12;
  for (uint64_t seed = first; seed < first + runs && !::testing::Test::HasFailure(); ++seed) {
    SCOPED_TRACE("DYNA_TEST_SEED=" + std::to_string(seed));
    Model(seed, faults).Run(1500);
    if (::testing::Test::HasFailure())
      std::printf("DYNA_TEST_SEED=%llu\n", static_cast<unsigned long long>(seed));
  }
  std::printf("%s seeds from %llu\n",
              faults ? "faulty disks:" : "sound disks:", static_cast<unsigned long long>(first));
}

TEST(StoreModel, SoundDisks) { RunSeeds(false); }
TEST(StoreModel, FaultyDisks) { RunSeeds(true); }

}  // namespace
}  // namespace dyna::model
