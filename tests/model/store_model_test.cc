// The store under random operations against an oracle (oracle.h): right bytes or a miss, never
// wrong ones; what was acknowledged persistent is never lost; what was deleted stays deleted; and
// when everything is deleted nothing is left on any account.
//
// DYNA_TEST_SEED repeats one run, DYNA_TRACE=1 tells what happens in it; DYNA_LONG=1 does many
// more.
#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <functional>
#include <random>

#include "tests/model/oracle.h"

namespace dyna::model {
namespace {

using std::chrono::milliseconds;
using testing::StoreHarness;

constexpr uint64_t kChains = 5, kLength = 4, kBlocks = kChains * kLength;
constexpr uint64_t kMortal = kChains - 1;  // of this chain every put has a time to live
constexpr uint64_t kOpaque = 4, kOpaqueName = 1000;

struct Held {
  uint64_t lease = 0;
  Caller caller;
  std::vector<uint64_t> run;
  QualityClass floor = QualityClass::kSmall;
  float max_nmse = 0;
};

class Model {
 public:
  Model(uint64_t seed, bool faults) : dice_(seed), faults_(faults), s_(Arena(seed), Options()) {}

  ~Model() {  // after a failure calls are under way that would tell us of it
    s_.Crash();
  }

  void Run(int operations) {
    for (int i = 0; i < operations && !::testing::Test::HasFailure(); ++i) {
      SCOPED_TRACE("operation " + std::to_string(i));
      operation_ = i;
      Operate();
      Progress();
      if (Chance(60)) Quiet();
    }
    if (!::testing::Test::HasFailure()) Finish();
  }

 private:
  static uint64_t Arena(uint64_t seed) { return seed % 3 == 0 ? 512u << 10 : 2u << 20; }
  static StoreOptions Options() {
    StoreOptions options;
    options.open_puts = 6;
    options.learner.min_tokens = 512;
    options.learner.keys_only_tokens = 1024;
    return options;
  }

  uint64_t Roll(uint64_t n) { return dice_() % n; }
  bool Chance(uint64_t one_in) { return Roll(one_in) == 0; }
  int64_t Now() const { return s_.clock.UnixMillis(); }
  Caller Somebody() { return {1 + Roll(3), s_.caller.tenant}; }

  void Say(const std::string& what, uint64_t b, const std::string& more = "") const {
    if (!tracing_) return;
    const record::BlockKey key{s_.caller.tenant, s_.context, Name(b)};
    std::printf("%d: %s %d v%d%s%s %s\n", operation_, what.c_str(), static_cast<int>(b),
                b < kBlocks ? static_cast<int>(truth_[b].version) : 0,
                s_.spill_disk->blocks.count(key) ? " in spill" : "",
                s_.bank_disk->blocks.count(key) ? " in bank" : "", more.c_str());
  }

  static BlockHash Name(uint64_t b) { return StoreHarness::Name(b + 1); }
  static uint64_t ChainOf(uint64_t b) { return b / kLength; }

  void Operate() {
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

  // ---- what callers do

  void Put() {
    const uint64_t chain = Roll(kChains), first = Roll(kLength);
    const uint64_t count = 1 + Roll(std::min<uint64_t>(3, kLength - first));
    const QualityClass classes[] = {QualityClass::kBalanced, QualityClass::kBalanced,
                                    QualityClass::kSmall, QualityClass::kHigh,
                                    QualityClass::kExact};
    wire::Put put =
        s_.Request(chain * kLength + first + 1, static_cast<uint32_t>(first), classes[Roll(5)]);
    put.hashes.clear();
    if (chain == kMortal)
      put.ttl_ms = static_cast<uint32_t>(200 + Roll(5000));
    else if (Chance(3))
      put.durability = Durability::kPersistent;
    if (Chance(8)) put.shard.head_begin = static_cast<uint16_t>(Roll(2));
    if (put.shard.head_begin == 0 && Chance(8)) put.shard.head_end = 1;
    const bool whole = put.shard.head_begin == 0 && put.shard.head_end == StoreHarness::kHeads;
    if (Chance(6)) {
      put.layer_begin = static_cast<uint16_t>(Roll(2));
      put.layer_count = 1;
    }
    struct Call {
      std::vector<std::vector<float>> data;
      std::vector<Asked> blocks;
    };
    auto call = std::make_shared<Call>();
    std::vector<KvView> sources;
    for (uint64_t i = 0; i < count; ++i) {
      const uint64_t b = chain * kLength + first + i;
      put.hashes.push_back(Name(b));
      Say("put", b,
          Words(put) + " until " + std::to_string(put.ttl_ms == 0 ? 0 : Now() + put.ttl_ms));
      call->blocks.push_back({b, truth_[b].version, truth_[b].drops});
      call->data.push_back(*contents_.Of(b, truth_[b].version));
      truth_[b].Asked(put.ttl_ms == 0 ? 0 : Now() + put.ttl_ms);
    }
    for (auto& data : call->data)
      for (const auto& v :
           StoreHarness::Views(data, put.layer_begin, put.layer_count, put.shard.head_begin))
        sources.push_back({v.k, v.v, v.k_token_stride, v.k_head_stride, v.v_token_stride,
                           v.v_head_stride, v.dtype});
    const Caller who = Somebody();
    wire::PutReply early;
    if (!s_.store->WantsPut(who, put, &early)) return Acknowledge(put, whole, call->blocks, early);
    ++pending_;
    s_.store->Put(who, put, sources, {call, {}}, [this, put, whole, call](wire::PutReply reply) {
      --pending_;
      Acknowledge(put, whole, call->blocks, reply);
    });
  }

  void Acknowledge(const wire::Put& put, bool whole, const std::vector<Asked>& blocks,
                   const wire::PutReply& reply) {
    Expect(reply.status,
           {StatusCode::kOk, StatusCode::kRetry, StatusCode::kQuota, StatusCode::kCancelled,
            StatusCode::kInvalid, StatusCode::kUnsupported, StatusCode::kMiss});
    if (reply.status.code() == StatusCode::kInvalid) {
      EXPECT_NE(reply.status.ToString().find("shard"), std::string::npos)
          << reply.status.ToString();
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

  void Look() {
    const uint64_t chain = Roll(kChains), first = Roll(2);
    const QualityClass floors[] = {QualityClass::kSmall, QualityClass::kSmall,
                                   QualityClass::kBalanced, QualityClass::kHigh,
                                   QualityClass::kExact};
    Held held;
    held.caller = Somebody();
    held.floor = floors[Roll(5)];
    if (Chance(6)) held.max_nmse = Chance(2) ? 1e-4f : 0.02f;
    wire::Lookup look;
    look.context = s_.context;
    look.shard = {0, StoreHarness::kLayers, 0, StoreHarness::kHeads};
    look.min_quality = held.floor;
    look.max_nmse = held.max_nmse;
    look.ttl_ms = Chance(4) ? 500 : 0;
    for (uint64_t i = first; i < kLength; ++i) {
      held.run.push_back(chain * kLength + i);
      look.hashes.push_back(Name(held.run.back()));
    }
    const wire::LookupReply reply = s_.store->Lookup(held.caller, look);
    Expect(reply.status, {StatusCode::kOk});
    for (size_t i = 0; i < held.run.size(); ++i) {
      const uint64_t b = held.run[i];
      const StatusCode status = reply.hits[i].status;
      Say("lookup at " + std::to_string(Now()), b,
          std::string(StatusName(status)) + " " + std::string(TierName(reply.hits[i].tier)));
      if (truth_[b].must_miss(Now())) {
        EXPECT_NE(status, StatusCode::kOk) << "block " << b << " was deleted or has expired";
      }
      if (truth_[b].durable && held.floor == QualityClass::kSmall && held.max_nmse == 0) {
        EXPECT_EQ(status, StatusCode::kOk) << "block " << b << " was acknowledged persistent";
      }
    }
    held.run.resize(reply.run);
    held.lease = reply.lease;
    if (reply.run > 0) held_.push_back(std::move(held));
    if (held_.size() > 12) held_.erase(held_.begin());  // the store forgets it by its time-out
  }

  void Fetch() {
    if (held_.empty()) return;
    const Held& held = held_[Roll(held_.size())];
    const auto at = static_cast<uint32_t>(Roll(held.run.size()));
    Fetch(held, at, [](const Status&) {});
  }

  void Fetch(const Held& held, uint32_t at, std::function<void(const Status&)> then) {
    wire::Fetch fetch;
    fetch.context = s_.context;
    fetch.lease = held.lease;
    fetch.head_end = StoreHarness::kHeads;
    fetch.layer_count = StoreHarness::kLayers;
    fetch.block_begin = at;
    fetch.block_count = 1;
    auto out = std::make_shared<std::vector<float>>(StoreHarness::kBlock, NAN);
    const uint64_t b = held.run[at];
    ++pending_;
    s_.store->Fetch(
        held.caller, fetch, StoreHarness::Views(*out, 0, StoreHarness::kLayers, 0), {out, {}},
        [this, b, out, held, versions = truth_[b].Versions(),
         then = std::move(then)](Store::Fetched fetched) {
          --pending_;
          if (fetched.reply.status.ok()) Verify(b, held, versions, *out, fetched.reply);
          Expect(fetched.reply.status,
                 {StatusCode::kOk, StatusCode::kMiss, StatusCode::kRetry, StatusCode::kLeaseLost});
          then(fetched.reply.status);
        });
  }

  void Verify(uint64_t b, const Held& held, const std::vector<uint64_t>& versions,
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
    EXPECT_LE(best, said * 3 + 1e-3) << "block " << b << ": not what was put, or not as good";
    if (held.max_nmse > 0) {
      EXPECT_LE(said, static_cast<double>(held.max_nmse) * 1.01) << "block " << b;
    }
    ++verified_;
  }

  void Release() {
    if (held_.empty()) return;
    const size_t at = Roll(held_.size());
    s_.store->ReleaseLease(held_[at].caller, held_[at].lease);
    held_.erase(held_.begin() + static_cast<long>(at));
  }

  void Delete() {
    wire::Delete request{s_.context, {}};
    for (uint64_t n = 1 + Roll(2); n > 0; --n) {
      const uint64_t b = Roll(kBlocks);
      request.hashes.push_back(Name(b));
      Say("delete", b);
      truth_[b].Deleted();
    }
    s_.store->Delete(Somebody(), request);
  }

  void Clear() {
    s_.store->Clear(Somebody(), {s_.context});
    for (Truth& t : truth_) t.Deleted();
    for (Truth& t : opaque_) t.Deleted();
  }

  void BankDrop() {
    const uint64_t b = Roll(kBlocks);
    Say("bank drop", b);
    ++pending_;
    s_.store->BankDrop(Somebody(), {s_.context, {Name(b)}},
                       [this](const wire::CountReply&) { --pending_; });
    truth_[b].durable = false;
    ++truth_[b].drops;
  }

  void Pin() {
    const uint64_t b = Roll(kBlocks);
    wire::Pin pin{s_.context, {Name(b)}, Chance(2), 0};
    if (ChainOf(b) == kMortal) {
      pin.ttl_ms = static_cast<uint32_t>(200 + Roll(2000));
      Truth& t = truth_[b];
      if (!t.must_miss(Now()) && t.latest_end != 0)
        t.latest_end = std::max(t.latest_end, Now() + pin.ttl_ms);
    }
    Say("pin", b, "at " + std::to_string(Now()) + " for " + std::to_string(pin.ttl_ms));
    s_.store->Pin(Somebody(), pin);
  }

  void Report() {
    const uint64_t chain = Roll(kChains), last = Roll(kLength);
    wire::Report report;
    report.context = s_.context;
    report.leaf = Name(chain * kLength + last);
    report.layer_count = StoreHarness::kLayers;
    report.head_end = StoreHarness::kHeads;
    report.queries = 8;
    report.advance = 256;
    const size_t tokens = (last + 1) * kBlockTokens;
    std::vector<float> values;
    if (Chance(2)) {
      report.kind = wire::ReportKind::kColumnMass;
      values.resize(tokens * StoreHarness::kHeads * StoreHarness::kLayers);
    } else {
      report.first_query_position = static_cast<uint32_t>(tokens);
      values.resize(size_t{StoreHarness::kLayers} * 8 * 2 * StoreHarness::kHeads *
                    StoreHarness::kDim);
    }
    // Queries look everywhere alike: the error of a level is measured as they see it.
    const float low = report.kind == wire::ReportKind::kColumnMass ? 0.0f : 0.5f;
    for (float& x : values) x = static_cast<float>(Roll(1000)) * 1e-3f - low;
    std::vector<std::byte> bytes(values.size() * sizeof(float));
    std::memcpy(bytes.data(), values.data(), bytes.size());
    s_.store->Report(Somebody(), report, std::move(bytes), [this](const Status& status) {
      Expect(status, {StatusCode::kOk, StatusCode::kRetry, StatusCode::kMiss});
    });
  }

  void OpaqueOnes() {
    const uint64_t n = Roll(kOpaque);
    Truth& t = opaque_[n];
    const BlockHash name = StoreHarness::Name(kOpaqueName + n);
    ++pending_;
    if (Chance(2)) {
      const Durability durability = Chance(2) ? Durability::kPersistent : Durability::kVolatile;
      t.Asked(0);
      s_.store->PutOpaque(
          Somebody(), {s_.context, name, durability, 0}, Object(n, t.version),
          [this, n, durability, version = t.version](const Status& status) {
            --pending_;
            Expect(status, {StatusCode::kOk, StatusCode::kExists, StatusCode::kRetry,
                            StatusCode::kQuota, StatusCode::kCancelled, StatusCode::kMiss});
            const bool held = status.ok() || status.code() == StatusCode::kExists;
            if (held && durability == Durability::kPersistent && opaque_[n].version == version)
              opaque_[n].Acknowledged(QualityClass::kExact);
          });
      return;
    }
    const bool durable = t.durable, must_miss = t.must_miss(Now());
    s_.store->GetOpaque(
        Somebody(), {s_.context, name},
        [this, n, durable, must_miss, before = t.version, versions = t.Versions()](
            const wire::OpaqueReply& reply, const std::vector<std::byte>& bytes) {
          --pending_;
          Expect(reply.status, {StatusCode::kOk, StatusCode::kMiss, StatusCode::kRetry});
          if (must_miss) {
            EXPECT_EQ(reply.status.code(), StatusCode::kMiss) << "object " << n;
          }
          if (durable && opaque_[n].version == before) {
            EXPECT_NE(reply.status.code(), StatusCode::kMiss) << "object " << n;
          }
          if (!reply.status.ok()) return;
          bool right = false;
          for (uint64_t version : versions) right |= bytes == Object(n, version);
          EXPECT_TRUE(right) << "object " << n << ": other bytes";
          ++verified_;
        });
  }

  void CloseSession() {
    const Caller who = Somebody();
    s_.store->CloseSession(who.session);
    std::erase_if(held_, [&](const Held& h) { return h.caller.session == who.session; });
  }

  // ---- what the machine does

  void Press() {
    const uint64_t budgets[] = {0, 0, 1024, 60'000, 150'000, 400'000};
    if (Chance(3))
      s_.store->ConfigureTenant(s_.caller.tenant, "model", Chance(2) ? 0 : 200'000);
    else
      s_.store->SetBudget(budgets[Roll(6)]);
  }

  void Disks() {
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

  void Progress() {
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

  // Everything under way ends: each call has been answered, and the disks did what they were told.
  void Quiet() {
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

  void Died() {
    Say("died", kBlocks);
    held_.clear();
    pending_ = 0;
    for (Truth& t : truth_) t.Crashed();
    for (Truth& t : opaque_) t.Crashed();
  }

  void Crash() {
    if (Chance(3)) {  // the spill may be thrown away at any start
      s_.spill_disk->blocks.clear();
      s_.spill_disk->rows.clear();
    }
    s_.Crash();
    Died();
    Reopen();
  }

  void Stop() {
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

  void Reopen() {
    const auto opened = s_.store->OpenContext(s_.caller, s_.spec, {});
    ASSERT_TRUE(opened.ok()) << opened.status().ToString();
  }

  // ---- the end

  void Finish() {
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

  bool Serves(uint64_t b) {
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

  void Expect(const Status& status, std::initializer_list<StatusCode> allowed) {
    bool fine =
        faults_ && (status.code() == StatusCode::kInternal || status.code() == StatusCode::kQuota);
    for (StatusCode code : allowed) fine |= status.code() == code;
    EXPECT_TRUE(fine) << status.ToString();
  }

  std::mt19937_64 dice_;
  const bool faults_;
  const bool tracing_ = std::getenv("DYNA_TRACE") != nullptr;
  int operation_ = 0;
  StoreHarness s_;
  Contents contents_;
  std::vector<Truth> truth_ = std::vector<Truth>(kBlocks);
  std::vector<Truth> opaque_ = std::vector<Truth>(kOpaque);
  std::vector<Held> held_;
  int pending_ = 0;
  uint64_t verified_ = 0;
};

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
