#include "daemon/policy/token_budget.h"

#include <algorithm>

namespace dyna {
namespace {

// theta lies between `-kHalf` (keeps all) and `kHalf` (keeps the pinned ones).
constexpr int kHalf = 32 * kEighths;
size_t Bin(int eighths) {
  return static_cast<size_t>(std::clamp(eighths, -kHalf, kHalf - 1) + kHalf);
}

}  // namespace

void TokenBudget::Add(int layer, int eighths, int64_t tokens, int64_t pinned) {
  Layer& l = layers_[static_cast<size_t>(layer)];
  l.free[Bin(eighths)] += tokens - pinned;
  l.pinned += pinned;
  l.tokens += tokens;
}

void TokenBudget::Remove(int layer, int eighths, int64_t tokens, int64_t pinned) {
  Add(layer, eighths, -tokens, -pinned);
}

int64_t TokenBudget::kept(int layer, int theta) const {
  const Layer& l = layers_[static_cast<size_t>(layer)];
  int64_t n = l.pinned;
  for (int bin = std::clamp(theta, -kHalf, kHalf) + kHalf; bin < kBins; ++bin)
    n += l.free[static_cast<size_t>(bin)];
  return n;
}

double TokenBudget::kappa(int layer, int theta) const {
  const int64_t n = kept(layer, theta);
  return n > 0 ? static_cast<double>(layers_[static_cast<size_t>(layer)].tokens) /
                     static_cast<double>(n)
               : 1.0;
}

bool TokenBudget::Solve(int64_t tokens, int* theta) const {
  *theta = -kHalf;
  if (tokens <= 0) return true;
  const auto total = [this](int at) {
    int64_t sum = 0;
    for (size_t l = 0; l < layers_.size(); ++l) sum += kept(static_cast<int>(l), at);
    return sum;
  };
  int low = -kHalf - 1, high = kHalf;  // what `high` keeps fits, if anything does
  if (total(high) > tokens) {
    *theta = high;
    return false;
  }
  while (high - low > 1) {
    const int middle = low + (high - low) / 2;
    (total(middle) <= tokens ? high : low) = middle;
  }
  *theta = high;
  return true;
}

}  // namespace dyna
