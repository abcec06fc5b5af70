// Recall of ranked proposals and classification of whole videos. Plain C++17, no Python.
#pragma once

#include "instances.hpp"

namespace ahlm {

// Rank (from 0, by descending score, equal scores in input order) of the first proposal of its video that reaches each
// threshold with an instance, whatever the classes; -1 for none. ranks: [n_tious, truth.size].
void first_ranks(const GroundTruth& truth, const Predictions& proposals, std::size_t n_videos, const double* tious,
                 std::size_t n_tious, unsigned n_threads, std::int64_t* ranks);

// Interpolated AP of each class over the videos, NaN where no video has it, and the rank (from 0) of the best-scored of
// each video's own classes, -1 where it has none. Equal scores in input order. scores, labels: [n_videos, n_classes].
void classification(const double* scores, const bool* labels, std::size_t n_videos, std::size_t n_classes, double* ap,
                    std::int64_t* best_rank);

}  // namespace ahlm
