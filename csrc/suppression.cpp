#include "suppression.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace ahlm {
namespace {

using Index = std::int64_t;
using Iterator = std::vector<Index>::iterator;

double overlap(const Detections& d, Index a, Index b, double extra) noexcept {
  const double intersection = std::max(0.0, std::min(d.end[a], d.end[b]) - std::max(d.start[a], d.start[b]) + extra);
  const double union_ = (d.end[a] - d.start[a] + extra) + (d.end[b] - d.start[b] + extra) - intersection;
  return union_ > 0.0 ? intersection / union_ : 0.0;
}

// One class, best first: moves what stays to the front and returns its end.
Iterator hard(const Detections& d, Iterator first, Iterator last, double tiou, double extra) {
  auto kept = first;
  for (auto candidate = first; candidate != last; ++candidate) {
    const bool covered =
        std::any_of(first, kept, [&](Index better) { return overlap(d, *candidate, better, extra) > tiou; });
    if (!covered) *kept++ = *candidate;
  }
  return kept;
}

// One class in any order: moves what stays to the front, best first, and returns its end.
Iterator soft(const Detections& d, Iterator first, Iterator last, double sigma, double min_score, double extra,
              double* scores) {
  for (; first != last; ++first) {
    std::iter_swap(first, std::min_element(first, last, [&](Index a, Index b) {
      return scores[a] != scores[b] ? scores[a] > scores[b] : a < b;
    }));
    if (scores[*first] < min_score) break;
    for (auto other = first + 1; other != last; ++other) {
      // a factor below 1 would lift a negative score
      if (scores[*other] <= 0.0) continue;
      const double o = overlap(d, *other, *first, extra);
      if (o > 0.0) scores[*other] *= std::exp(-(o * o) / sigma);
    }
  }
  return first;
}

}  // namespace

std::vector<Index> suppress(const Detections& d, double tiou, double sigma, double min_score, double extra,
                            double* scores) {
  const auto better = [&](Index a, Index b) { return scores[a] != scores[b] ? scores[a] > scores[b] : a < b; };
  std::vector<Index> order(d.size);
  std::iota(order.begin(), order.end(), Index{0});
  std::sort(order.begin(), order.end(), [&](Index a, Index b) {
    return d.class_index[a] != d.class_index[b] ? d.class_index[a] < d.class_index[b] : better(a, b);
  });
  auto kept = order.begin();
  for (auto first = order.begin(); first != order.end();) {
    const auto last =
        std::find_if(first, order.end(), [&](Index i) { return d.class_index[i] != d.class_index[*first]; });
    const auto stays =
        sigma < 0 ? hard(d, first, last, tiou, extra) : soft(d, first, last, sigma, min_score, extra, scores);
    kept = std::move(first, stays, kept);
    first = last;
  }
  order.erase(kept, order.end());
  std::sort(order.begin(), order.end(), better);
  return order;
}

}  // namespace ahlm
