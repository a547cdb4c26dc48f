// The store, an oracle, and random operations on both. store_model_test.cc chooses them, callers.cc
// and machine.cc do them, checks.cc holds what came of them against the oracle.
#pragma once

#include <functional>
#include <initializer_list>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "tests/model/oracle.h"

namespace dyna::model {

using testing::StoreHarness;

inline constexpr uint64_t kChains = 5, kLength = 4, kBlocks = kChains * kLength;
inline constexpr uint64_t kMortal = kChains - 1;  // of this chain every put has a time to live
inline constexpr uint64_t kOpaque = 4, kOpaqueName = 1000;

struct Held {
  uint64_t lease = 0;
  Caller caller;
  std::vector<uint64_t> run;
  QualityClass floor = QualityClass::kSmall;
  float max_nmse = 0;
};

class Model {
 public:
  Model(uint64_t seed, bool faults)
      : dice_(seed), faults_(faults), s_(Arena(seed), Options(seed)) {}

  ~Model() {  // after a failure calls are under way that would tell us of it
    s_.Crash();
  }

  void Run(int operations);

 private:
  static uint64_t Arena(uint64_t seed) { return seed % 3 == 0 ? 512u << 10 : 2u << 20; }
  static StoreOptions Options(uint64_t seed) {
    StoreOptions options;
    options.young_for = std::chrono::milliseconds(seed % 2 == 0 ? 0 : 2000);
    options.open_puts = 6;
    options.learner.min_tokens = 512;
    options.learner.keys_only_tokens = 1024;
    return options;
  }

  uint64_t Roll(uint64_t n) { return dice_() % n; }
  bool Chance(uint64_t one_in) { return Roll(one_in) == 0; }
  int64_t Now() const { return s_.clock.UnixMillis(); }
  Caller Somebody() { return {1 + Roll(3), s_.caller.tenant}; }

  static BlockHash Name(uint64_t b) { return StoreHarness::Name(b + 1); }
  static uint64_t ChainOf(uint64_t b) { return b / kLength; }

  void Say(const std::string& what, uint64_t b, const std::string& more = "") const;
  void Operate();

  // ---- callers.cc
  void Put();
  void Look();
  void Fetch();
  void Fetch(const Held& held, uint32_t at, std::function<void(const Status&)> then);
  void Release();
  void Delete();
  void Clear();
  void BankDrop();
  void Pin();
  void Report();
  void OpaqueOnes();
  void CloseSession();

  // ---- machine.cc
  void Press();
  void Disks();
  void Progress();
  void Crash();
  void Stop();
  void Reopen();

  // ---- checks.cc
  void Acknowledge(const wire::Put& put, bool whole, const std::vector<Asked>& blocks,
                   const wire::PutReply& reply);
  void Verify(uint64_t b, const Held& held, const std::vector<uint64_t>& versions,
              const std::vector<float>& got, const wire::FetchReply& reply);
  // Everything under way ends: each call has been answered, and the disks did what they were told.
  void Quiet();
  void Died();
  void Finish();
  bool Serves(uint64_t b);
  void Expect(const Status& status, std::initializer_list<StatusCode> allowed);

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

}  // namespace dyna::model
