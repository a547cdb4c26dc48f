#include "kernels/ladder.h"

#include <algorithm>

namespace dyna {
namespace {

struct Step {
  double gain;  // of error per bit
  size_t run;
  uint8_t width;  // after the step
};

std::vector<Step> StepsOf(std::span<const float> variances, int run) {
  std::vector<Step> steps;
  const size_t channels = static_cast<size_t>(run);
  for (size_t r = 0; r * channels < variances.size(); ++r) {
    double variance = 0;
    for (size_t c = 0; c < channels; ++c) variance += variances[r * channels + c];
    const auto add = [&](int from, int to) {
      const double gain = variance * (WidthError(from) - WidthError(to)) / (to - from);
      steps.push_back({gain, r, static_cast<uint8_t>(to)});
    };
    add(0, 2);
    add(2, 4);
    add(4, 8);
  }
  // Stable: ties go to the lower channel, and a run's steps keep their order (gains fall).
  std::stable_sort(steps.begin(), steps.end(),
                   [](const Step& x, const Step& y) { return x.gain > y.gain; });
  return steps;
}

}  // namespace

double WidthError(int width) {
  switch (width) {
    case 0:
      return 1;
    case 2:
      return .125;
    case 4:
      return .0085;
    default:
      return 3e-5;
  }
}

std::vector<Widths> LadderOf(std::span<const float> variances, int run) {
  const size_t runs = variances.size() / static_cast<size_t>(run);
  const bool seen = std::any_of(variances.begin(), variances.end(), [](float v) { return v > 0; });
  std::vector<Widths> levels(kLevelTargets.size(), Widths(runs, 0));
  if (!seen) return levels;
  const std::vector<Step> steps = StepsOf(variances, run);
  Widths widths(runs, 0);
  size_t next = 0;
  int bits = 0;
  for (size_t level = 0; level < levels.size(); ++level) {
    const double limit = kLevelTargets[level] * static_cast<double>(runs);  // exact
    while (next < steps.size()) {
      const int after = bits + steps[next].width - widths[steps[next].run];
      if (after > limit) break;
      bits = after;
      widths[steps[next].run] = steps[next].width;
      ++next;
    }
    levels[level] = widths;
  }
  return levels;
}

std::vector<std::vector<Widths>> LayerLadder(std::span<const std::span<const float>> variances,
                                             int run) {
  std::vector<std::vector<Widths>> heads;
  for (const auto& v : variances) heads.push_back(LadderOf(v, run));
  std::vector<std::vector<Widths>> levels;
  for (size_t target = 0; target < kLevelTargets.size(); ++target) {
    std::vector<Widths> level;
    level.reserve(heads.size());
    for (const auto& head : heads) level.push_back(head[target]);
    if (levels.empty() || level != levels.back()) levels.push_back(std::move(level));
  }
  return levels;
}

double MeanBits(std::span<const uint8_t> widths) {
  double sum = 0;
  for (const uint8_t w : widths) sum += w;
  return widths.empty() ? 0 : sum / static_cast<double>(widths.size());
}

double PredictedError(std::span<const uint8_t> widths, std::span<const float> variances) {
  if (widths.empty()) return 0;
  const size_t run = variances.size() / widths.size();
  double error = 0, energy = 0;
  for (size_t c = 0; c < variances.size(); ++c) {
    error += variances[c] * WidthError(widths[c / run]);
    energy += variances[c];
  }
  return energy > 0 ? error / energy : 0;
}

}  // namespace dyna
