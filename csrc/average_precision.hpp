// Average precision at temporal IoU, ActivityNet's algorithm. Plain C++17, no Python.
#pragma once

#include "instances.hpp"

namespace ahlm {

// What ActivityNet's script does where its sorts leave the choice open, or null pointers: by descending score, equal
// scores in input order; of equal overlaps the later instance first, as a reversed ascending stable sort does; the
// overlap of two segments without a union is 0.
struct OfficialTies {
  const std::int64_t* order;  // permutation to visit the predictions in; segments without a union then match at any tIoU
  // prediction p visits equal overlaps by ascending ranks[offsets[p] + j], j counting the ground truth of its class
  // and video in input order; offsets[p] < 0: the later first
  const std::int64_t* offsets;
  const std::int64_t* ranks;
  std::size_t n_ranks;
};

// ap: [n_tious, n_classes], NaN for classes without ground truth.
// taken_by: [n_tious, truth.size] prediction that takes each instance, -1 for none.
void average_precision(const GroundTruth& truth, const Predictions& predictions, const OfficialTies& ties,
                       std::size_t n_videos, std::size_t n_classes, const double* tious, std::size_t n_tious,
                       unsigned n_threads, double* ap, std::int64_t* taken_by);

}  // namespace ahlm
