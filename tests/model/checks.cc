// What the store answered, and what is left of it, against the oracle.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>

#include "tests/model/model.h"

namespace dyna::model {

void Model::Acknowledge(const wire::Put& put, bool whole, const std::vector<Asked>& blocks,
                        const wire::PutReply& reply) {
  Expect(reply.status,
         {StatusCode::kOk, StatusCode::kRetry, StatusCode::kQuota, StatusCode::kCancelled,
          StatusCode::kInvalid, StatusCode::kUnsupported, StatusCode::kMiss});
  if (reply.status.code() == StatusCode::kInvalid) {
    EXPECT_NE(reply.status.ToString().find("shard"), std::string::npos) << reply.status.ToString();
  }
  if (put.durability != Durability::kPersistent || !whole ||
      put.layer_count != StoreHarness::kLayers)
    return;
  for (size_t i = 0; i < blocks.size(); ++i) {
    bool all = true;
    for (size_t l = 0; l < put.layer_count; ++l) {
      const StatusCode code = reply.segments[i * put.layer_count + l].status;
      all &= code == StatusCode::kOk || code == StatusCode::kExists;
    }
    Truth& t = truth_[blocks[i].block];
    Say(all ? "acknowledged" : "refused", blocks[i].block, reply.status.ToString());
    if (all && t.version == blocks[i].version && t.drops == blocks[i].drops)
      t.Acknowledged(put.quality);
  }
}

void Model::Verify(uint64_t b, const Held& held, const std::vector<uint64_t>& versions,
                   const std::vector<float>& got, const wire::FetchReply& reply) {
  double said = 0;
  for (const auto& segment : reply.segments)
    said += static_cast<double>(segment.nmse) / static_cast<double>(reply.segments.size());
  double best = 1e9;
  for (uint64_t version : versions)
    best = std::min(best, Nmse(got.data(), *contents_.Of(b, version)));
  if (held.floor == QualityClass::kExact) {
    EXPECT_EQ(best, 0) << "block " << b << ": class exact is byte for byte";
  }
  if (held.floor == QualityClass::kHigh) {
    EXPECT_LT(best, 1e-3) << "block " << b << ": less than class high";
  }
  // What demotions add is an estimate: the errors of several as if they were independent. Of
  // another version it would be 2.
  EXPECT_LT(best, 1.5) << "block " << b << ": not what was put";
  EXPECT_LE(best, said * 4 + 1e-3) << "block " << b << ": not what was put, or not as good";
  if (held.max_nmse > 0) {
    EXPECT_LE(said, static_cast<double>(held.max_nmse) * 1.01) << "block " << b;
  }
  ++verified_;
}

void Model::Quiet() {
  Say("quiet", kBlocks);
  s_.spill->ReleaseAll();
  s_.bank->ReleaseAll();
  s_.spill->FailNext(0, {});
  s_.bank->FailNext(0, {});
  s_.Settle();
  EXPECT_EQ(pending_, 0) << "calls that were never answered";
  EXPECT_EQ(s_.store->stats().illegal_transitions, 0u);
  for (Truth& t : truth_) t.DisksAreQuiet(faults_);
  for (Truth& t : opaque_) t.DisksAreQuiet(faults_);
}

void Model::Died() {
  Say("died", kBlocks);
  held_.clear();
  pending_ = 0;
  for (Truth& t : truth_) t.Crashed();
  for (Truth& t : opaque_) t.Crashed();
}

void Model::Finish() {
  for (const Held& h : held_) s_.store->ReleaseLease(h.caller, h.lease);
  held_.clear();
  s_.store->SetBudget(0);
  s_.store->ConfigureTenant(s_.caller.tenant, "model", 0);
  s_.clock.Advance(std::chrono::seconds(31));  // unfinished puts keep the bank's copy away
  Quiet();
  for (uint64_t b = 0; b < kBlocks; ++b)
    if (truth_[b].durable && !truth_[b].ended(Now())) {
      EXPECT_TRUE(Serves(b)) << "block " << b;
    }
  s_.store->Clear(s_.caller, {s_.context});
  s_.clock.Advance(std::chrono::minutes(20));
  Quiet();
  const StoreStats stats = s_.store->stats();
  EXPECT_EQ(s_.arena->used_bytes(), 0u);
  EXPECT_EQ(stats.aux_bytes, 0u);
  EXPECT_EQ(stats.charged_bytes, stats.basis_bytes);
  EXPECT_EQ(stats.raw_bytes, 0u);
  EXPECT_EQ(stats.history_bytes, 0u);
  EXPECT_EQ(stats.writing_blocks, 0u);
  EXPECT_EQ(stats.leases, 0u);
  EXPECT_EQ(stats.leased_bytes, 0u);
  EXPECT_EQ(stats.host.blocks, 0u);
  EXPECT_FALSE(s_.store->NeedsClock());
  for (const TenantUse& use : s_.store->Tenants()) EXPECT_EQ(use.bytes, 0u) << use.name;
  for (const ContextFact& fact : s_.store->Contexts(0)) {
    EXPECT_EQ(fact.blocks, 0u);
    for (const BasisFact& basis : fact.bases) EXPECT_EQ(basis.segments, 0u);
  }
  if (!faults_) {
    EXPECT_TRUE(s_.spill_disk->blocks.empty());
    EXPECT_TRUE(s_.bank_disk->blocks.empty());
  }
  EXPECT_GT(verified_, 0u) << "nothing was ever served";
}

bool Model::Serves(uint64_t b) {
  const uint64_t before = verified_;
  for (int tries = 0; tries < 30 && verified_ == before; ++tries) {
    wire::Lookup look;
    look.context = s_.context;
    look.shard = {0, StoreHarness::kLayers, 0, StoreHarness::kHeads};
    look.min_quality = truth_[b].durable_class;
    look.hashes = {Name(b)};
    const wire::LookupReply reply = s_.store->Lookup(s_.caller, look);
    Say("serves", b, std::string(StatusName(reply.hits[0].status)));
    if (reply.hits[0].status != StatusCode::kOk) return false;
    if (reply.run == 0) return true;  // pinned blocks leave no room for leases
    const Held held{reply.lease, s_.caller, {b}, look.min_quality, 0};
    Fetch(held, 0, [&](const Status& status) { Say("fetched", b, status.ToString()); });
    s_.Settle();
    s_.store->ReleaseLease(s_.caller, reply.lease);
    s_.Settle();
  }
  return verified_ > before;
}

void Model::Expect(const Status& status, std::initializer_list<StatusCode> allowed) {
  bool fine =
      faults_ && (status.code() == StatusCode::kInternal || status.code() == StatusCode::kQuota);
  for (StatusCode code : allowed) fine |= status.code() == code;
  EXPECT_TRUE(fine) << status.ToString();
}

}  // namespace dyna::model
