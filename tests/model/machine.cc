// What happens to the daemon: pressure, disks that wait or fail, stops and crashes.
#include <gtest/gtest.h>

#include <chrono>

#include "tests/model/model.h"

namespace dyna::model {

using std::chrono::milliseconds;

void Model::Press() {
  const uint64_t budgets[] = {0, 0, 1024, 60'000, 150'000, 400'000};
  if (Chance(3))
    s_.store->ConfigureTenant(s_.caller.tenant, "model", Chance(2) ? 0 : 200'000);
  else
    s_.store->SetBudget(budgets[Roll(6)]);
}

void Model::Disks() {
  MemorySpill& disk = Chance(2) ? *s_.spill : *s_.bank;
  if (Chance(2)) {
    disk.held() == 0 ? disk.Hold() : Chance(2) ? disk.ReleaseAll() : disk.Release(1 + Roll(3));
  } else if (faults_) {
    Say(&disk == s_.bank.get() ? "bank fault" : "spill fault", kBlocks);
    const StatusCode codes[] = {StatusCode::kRetry, StatusCode::kQuota, StatusCode::kInternal};
    disk.FailNext(1 + Roll(3), Status(codes[Roll(3)], "a fault"));
  } else if (!s_.spill_disk->blocks.empty()) {  // a damaged copy is a miss, or the bank's
    auto at = s_.spill_disk->blocks.begin();
    std::advance(at, static_cast<long>(Roll(s_.spill_disk->blocks.size())));
    if (!at->second.parts.empty()) s_.spill->Damage(at->first, at->second.parts.begin()->first);
  }
}

void Model::Progress() {
  for (uint64_t n = Roll(12); n > 0; --n) {
    const uint64_t what = Roll(4);
    if (what == 0)
      s_.store->Tick();
    else if (what == 1)
      s_.codec.RunOne();
    else
      s_.loop.RunOne();
  }
}

void Model::Crash() {
  if (Chance(3)) {  // the spill may be thrown away at any start
    s_.spill_disk->blocks.clear();
    s_.spill_disk->rows.clear();
  }
  s_.Crash();
  Died();
  Reopen();
}

void Model::Stop() {
  bool drained = false;
  s_.spill->ReleaseAll();
  s_.bank->ReleaseAll();
  s_.store->Drain(s_.clock.Now() + milliseconds(Roll(2) * 1000), [&] { drained = true; });
  for (int i = 0; i < 10'000 && !drained; ++i) {
    s_.codec.RunOne();
    s_.loop.RunAll();
  }
  EXPECT_TRUE(drained) << "the drain never ended";
  EXPECT_EQ(pending_, 0) << "calls that the drain left unanswered";
  s_.Crash();
  Died();
  Reopen();
}

void Model::Reopen() {
  const auto opened = s_.store->OpenContext(s_.caller, s_.spec, {});
  ASSERT_TRUE(opened.ok()) << opened.status().ToString();
}

}  // namespace dyna::model
