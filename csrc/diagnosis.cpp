#include "diagnosis.hpp"

namespace ahlm {
namespace {

Kind judge(const GroundTruth& truth, const Groups& truth_of_video, const Predictions& predictions, std::size_t p,
           double tiou, double low, std::int64_t* taken_by) {
  std::size_t taken = truth.size;
  double best = 0.0, same = 0.0, other = 0.0;
  const auto video = static_cast<std::size_t>(predictions.video[p]);
  for (auto* g = truth_of_video.begin(video); g != truth_of_video.end(video); ++g) {
    const double overlap = temporal_iou(predictions.start[p], predictions.end[p], truth.start[*g], truth.end[*g]);
    if (truth.class_index[*g] != predictions.class_index[p]) {
      other = std::max(other, overlap);
      continue;
    }
    same = std::max(same, overlap);
    // of equal overlaps the later instance, as in the average precision
    if (overlap >= tiou && overlap >= best && taken_by[*g] < 0) best = overlap, taken = *g;
  }
  if (taken != truth.size) {
    taken_by[taken] = static_cast<std::int64_t>(p);
    return Kind::correct;
  }
  if (same >= tiou) return Kind::twice;
  if (other >= tiou) return Kind::wrong_label;
  if (same >= low) return Kind::localisation;
  return other >= low ? Kind::confusion : Kind::background;
}

}  // namespace

void diagnose(const GroundTruth& truth, const Predictions& predictions, std::size_t n_videos, std::size_t n_classes,
              double tiou, double low, Kind* kind, std::int64_t* taken_by) {
  std::fill(kind, kind + predictions.size, Kind::not_judged);
  std::fill(taken_by, taken_by + truth.size, -1);
  const Groups truth_of_video(truth.video, truth.size, n_videos);
  const Groups truth_of_class(truth.class_index, truth.size, n_classes);
  Groups by_class(predictions.class_index, predictions.size, n_classes);
  for (std::size_t c = 0; c < n_classes; ++c) {
    auto *const first = by_class.members.data() + by_class.offsets[c], *const last = first + by_class.count(c);
    auto* const judged = first + std::min(by_class.count(c), truth_of_class.count(c));
    std::partial_sort(first, judged, last, [&](std::size_t a, std::size_t b) {
      return predictions.score[a] != predictions.score[b] ? predictions.score[a] > predictions.score[b] : a < b;
    });
    for (auto* p = first; p != judged; ++p)
      kind[*p] = judge(truth, truth_of_video, predictions, *p, tiou, low, taken_by);
  }
}

}  // namespace ahlm
