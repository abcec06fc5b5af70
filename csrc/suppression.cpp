#include "suppression.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace ahlm {
namespace {

double overlap(const Detections& d, std::int64_t a, std::int64_t b, double extra) noexcept {
  const double intersection = std::max(0.0, std::min(d.end[a], d.end[b]) - std::max(d.start[a], d.start[b]) + extra);
  const double union_ = (d.end[a] - d.start[a] + extra) + (d.end[b] - d.start[b] + extra) - intersection;
  return union_ > 0.0 ? intersection / union_ : 0.0;
}

}  // namespace

std::vector<std::int64_t> suppress(const Detections& d, double tiou, double sigma, double min_score, double extra,
                                   double* scores) {
  std::vector<std::int64_t> kept;
  std::vector<std::int64_t> alive(d.size);
  std::iota(alive.begin(), alive.end(), 0);
  if (sigma < 0) {
    std::stable_sort(alive.begin(), alive.end(), [&](auto a, auto b) { return scores[a] > scores[b]; });
    for (const auto candidate : alive) {
      const bool covered = std::any_of(kept.begin(), kept.end(), [&](auto better) {
        return d.class_index[better] == d.class_index[candidate] && overlap(d, candidate, better, extra) > tiou;
      });
      if (!covered) kept.push_back(candidate);
    }
    return kept;
  }
  while (!alive.empty()) {
    const auto best = std::max_element(alive.begin(), alive.end(), [&](auto a, auto b) { return scores[a] < scores[b]; });
    const auto taken = *best;
    if (scores[taken] < min_score) break;
    alive.erase(best);
    kept.push_back(taken);
    for (const auto other : alive) {
      if (d.class_index[other] != d.class_index[taken]) continue;
      const double o = overlap(d, other, taken, extra);
      scores[other] *= std::exp(-(o * o) / sigma);
    }
  }
  return kept;
}

}  // namespace ahlm
