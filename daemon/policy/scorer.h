// A scorer turns what a client reported into relative attention x (policy 1): per kv head and
// token of the chain, 1 = a uniform share, sinks removed and 0 themselves, NaN = not covered.
// One file a method, one row of the table in scorer.cc each.
//
// Thread rule: stateless; any thread.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "schemas/status.h"
#include "schemas/types.h"

namespace dyna {

// One layer of a report.
struct AttentionReport {
  int layer = 0;  // for messages
  int kv_heads = 0;
  uint32_t tokens = 0;   // of the chain, from the root; blocks are 64 of them
  uint32_t queries = 0;  // that were summed (column and tile mass)
  // query_window: x as ScoreJob.relative gives it, [kv_heads][tokens].
  // column_mass:  attention of each token summed over the queries, [kv_heads][tokens].
  // tile_mass:    [kv_heads][blocks][3]: max logit, sum of exponentials over max, log-sum-exp.
  std::span<const float> values;
};

class Scorer {
 public:
  virtual ~Scorer() = default;
  virtual std::string_view name() const = 0;
  // How many values a report of that shape carries.
  virtual uint64_t ValuesOf(int kv_heads, uint32_t tokens) const = 0;
  // False: reports of this kind say nothing, history stays unobserved (w = 1).
  virtual bool observes() const { return true; }
  // x has kv_heads * tokens places. INVALID, naming layer, head and token, for a wrong length or a
  // value that is not finite, negative or over its bound; x is then untouched.
  virtual Status Score(const AttentionReport& report, std::span<float> x) const = 0;
};

inline constexpr float kMaxRelative = 1048576;  // of x: a longer chain than any model has

// keys_only, query_window, column_mass, tile_mass.
std::span<const Scorer* const> Scorers();
Result<const Scorer*> FindScorer(std::string_view name);

}  // namespace dyna
