// What callers ask of the store.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>

#include "tests/model/model.h"

namespace dyna::model {

void Model::Put() {
  const uint64_t chain = Roll(kChains), first = Roll(kLength);
  const uint64_t count = 1 + Roll(std::min<uint64_t>(3, kLength - first));
  const QualityClass classes[] = {QualityClass::kBalanced, QualityClass::kBalanced,
                                  QualityClass::kSmall, QualityClass::kHigh, QualityClass::kExact};
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
    for (const KvView& v :
         StoreHarness::Sources(data, put.layer_begin, put.layer_count, put.shard.head_begin))
      sources.push_back(v);
  const Caller who = Somebody();
  wire::PutReply early;
  if (!s_.store->WantsPut(who, put, &early)) return Acknowledge(put, whole, call->blocks, early);
  ++pending_;
  s_.store->Put(who, put, sources, {call, {}}, [this, put, whole, call](wire::PutReply reply) {
    --pending_;
    Acknowledge(put, whole, call->blocks, reply);
  });
}

void Model::Look() {
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

void Model::Fetch() {
  if (held_.empty()) return;
  const Held& held = held_[Roll(held_.size())];
  const auto at = static_cast<uint32_t>(Roll(held.run.size()));
  Fetch(held, at, [](const Status&) {});
}

void Model::Fetch(const Held& held, uint32_t at, std::function<void(const Status&)> then) {
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

void Model::Release() {
  if (held_.empty()) return;
  const size_t at = Roll(held_.size());
  s_.store->ReleaseLease(held_[at].caller, held_[at].lease);
  held_.erase(held_.begin() + static_cast<long>(at));
}

void Model::Delete() {
  wire::Delete request{s_.context, {}};
  for (uint64_t n = 1 + Roll(2); n > 0; --n) {
    const uint64_t b = Roll(kBlocks);
    request.hashes.push_back(Name(b));
    Say("delete", b);
    truth_[b].Deleted();
  }
  s_.store->Delete(Somebody(), request);
}

void Model::Clear() {
  s_.store->Clear(Somebody(), {s_.context});
  for (Truth& t : truth_) t.Deleted();
  for (Truth& t : opaque_) t.Deleted();
}

void Model::BankDrop() {
  const uint64_t b = Roll(kBlocks);
  Say("bank drop", b);
  ++pending_;
  s_.store->BankDrop(Somebody(), {s_.context, {Name(b)}},
                     [this](const wire::CountReply&) { --pending_; });
  truth_[b].durable = false;
  ++truth_[b].drops;
}

void Model::Pin() {
  const uint64_t b = Roll(kBlocks);
  wire::Pin pin{s_.context, {Name(b)}, Chance(2), 0};
  if (ChainOf(b) == kMortal) {
    pin.ttl_ms = static_cast<uint32_t>(200 + Roll(2000));
    Truth& t = truth_[b];
    if (!t.must_miss(Now()) && t.latest_end != 0)
      t.latest_end = std::max(t.latest_end, Now() + pin.ttl_ms);
  }
  Say("pin", b, "at " + std::to_string(Now()) + " for " + std::to_string(pin.ttl_ms));
  ++pending_;
  s_.store->Pin(Somebody(), pin, [this](const wire::CountReply& reply) {
    --pending_;
    Expect(reply.status, {StatusCode::kOk, StatusCode::kRetry});
  });
}

void Model::Report() {
  const uint64_t chain = Roll(kChains), last = Roll(kLength);
  wire::Report report;
  report.context = s_.context;
  report.leaf = Name(chain * kLength + last);
  report.layer_count = StoreHarness::kLayers;
  report.head_end = StoreHarness::kHeads;
  constexpr size_t kQueries = StoreHarness::kDim / 2;  // two q heads share a kv head
  report.queries = kQueries;
  report.advance = 256;
  const size_t tokens = (last + 1) * kBlockTokens;
  std::vector<float> values;
  if (Chance(2)) {
    report.kind = wire::ReportKind::kColumnMass;
    values.resize(tokens * StoreHarness::kHeads * StoreHarness::kLayers);
    for (float& x : values) x = static_cast<float>(Roll(1000)) * 1e-3f;
  } else {
    report.first_query_position = static_cast<uint32_t>(tokens);
    // Each axis once for every kv head: the error of a level is measured as its queries see it, and
    // theirs shall be the oracle's.
    constexpr size_t kQueryHeads = 2 * StoreHarness::kHeads;
    values.resize(StoreHarness::kLayers * kQueries * kQueryHeads * StoreHarness::kDim);
    for (size_t i = 0; i < values.size() / StoreHarness::kDim; ++i) {
      const size_t query = i / kQueryHeads % kQueries, half = i % 2;
      values[i * StoreHarness::kDim + query + half * kQueries] = Chance(2) ? .7f : -.7f;
    }
  }
  std::vector<std::byte> bytes(values.size() * sizeof(float));
  std::memcpy(bytes.data(), values.data(), bytes.size());
  s_.store->Report(Somebody(), report, std::move(bytes), [this](const Status& status) {
    Expect(status, {StatusCode::kOk, StatusCode::kRetry, StatusCode::kMiss});
  });
}

void Model::OpaqueOnes() {
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

void Model::CloseSession() {
  const Caller who = Somebody();
  s_.store->CloseSession(who.session);
  std::erase_if(held_, [&](const Held& h) { return h.caller.session == who.session; });
}

}  // namespace dyna::model
