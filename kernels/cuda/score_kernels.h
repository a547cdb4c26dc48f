// Window attention on a device (policy 1), over K that a decode has put there: the mass that each
// query gives to the tokens it sees, and the weights that follow from it.
#pragma once

#include <cstdint>

struct CUstream_st;

namespace dyna::cuda {

// Tokens [begin, end) of the sequence.
struct TokenRange {
  int32_t begin, end;
};
// Queries as the matrix instructions take them; as many bytes as the queries.
struct alignas(16) QueryPart {
  uint32_t word[4];
};
// Queries of a kv head are rows: row w slots + g is query head g of its group at position w. Rows
// beyond the group or the window are there, and count nowhere.
struct ScoreRows {
  const float* q = nullptr;          // [heads][rows][d], scaled
  const QueryPart* parts = nullptr;  // of them (LaunchSplitQueries)
  int rows = 0;                      // a multiple of 16
  int slots = 1;                     // 1, 2, 4, 8 or 16: a group with room
  int group = 1;                     // query heads of a kv head, at most `slots`
  int heads = 0, d = 0;              // d a multiple of 16
  const TokenRange* seen = nullptr;  // [rows / slots], empty beyond the window
};
// Some blocks of the chain, one after the other.
struct ScoreBlocks {
  const float* k = nullptr;         // [count][heads][64][d], as a decode gives them
  const uint64_t* alive = nullptr;  // [count][heads]: tokens that are there
  int first = 0, count = 0;         // block `first` begins at token 64 first
};
// The sum of exp(logit), as its largest logit and the sum relative to it.
struct Mass {
  float most, sum;
};

// rows.q -> `parts`, heads x rows x d / 4 of them. Before the others, which read rows.parts.
bool LaunchSplitQueries(const ScoreRows& rows, QueryPart* parts, CUstream_st* stream);
// Of each block, into `partial` ([count][heads][rows]), and added to `mass` ([heads][rows]).
bool LaunchScoreMass(const ScoreRows& rows, const ScoreBlocks& blocks, Mass* partial, Mass* mass,
                     CUstream_st* stream);
// relative[head][64 block + t] = mean over the positions that see t of visible[w] times the largest
// weight of the group. given: log-sum-exp of rows ([heads][rows]), of which `mass` is what sinks
// take; null: `mass` is all there is.
bool LaunchScoreWeights(const ScoreRows& rows, const ScoreBlocks& blocks, const Mass* mass,
                        const float* given, const float* visible, float* relative, int length,
                        CUstream_st* stream);

}  // namespace dyna::cuda
