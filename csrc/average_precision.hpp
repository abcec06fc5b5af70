// Average precision at temporal IoU, ActivityNet's algorithm. Plain C++17, no Python.
//
// Ties: predictions are visited in the order given (parity mode), or by descending score with equal scores in input
// order. Among ground-truth instances of equal overlap the one that comes later in the input is matched first, as a
// reversed ascending stable sort does, unless `tie_ranks` say otherwise (parity mode).
#pragma once

#include <cstddef>
#include <cstdint>

namespace ahlm {

struct GroundTruth {
  std::size_t size;
  const std::int64_t* video;        // in [0, n_videos)
  const std::int64_t* class_index;  // in [0, n_classes)
  const double* start;
  const double* end;
};

struct Predictions {
  std::size_t size;
  const std::int64_t* video;
  const std::int64_t* class_index;
  const double* score;  // finite
  const double* start;
  const double* end;
  const std::int64_t* order;  // permutation to visit them in, or null: by descending score, stable
  // prediction p visits equal overlaps by ascending tie_ranks[tie_offsets[p] + j], j counting the ground truth of its
  // class and video in input order; tie_offsets[p] < 0 or a null pointer: the later first
  const std::int64_t* tie_offsets;
  const std::int64_t* tie_ranks;
};

// ap: [n_tious, n_classes], NaN for classes without ground truth.
// matched: [n_tious, predictions.size] index of the ground truth each prediction takes, -1 for none; may be null.
void average_precision(const GroundTruth& truth, const Predictions& predictions, std::size_t n_videos,
                       std::size_t n_classes, const double* tious, std::size_t n_tious, unsigned n_threads, double* ap,
                       std::int64_t* matched);

}  // namespace ahlm
