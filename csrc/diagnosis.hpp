// What is wrong with the best detections of each class. Plain C++17, no Python.
#pragma once

#include "instances.hpp"

namespace ahlm {

enum class Kind : std::int64_t { not_judged = -1, correct, twice, wrong_label, localisation, confusion, background };

// Of each class, as many of its best-scored predictions as it has instances are judged (equal scores in input order).
// `low`: overlaps from here up to `tiou` are near misses. kind: [predictions.size]. taken_by: [truth.size] judged
// prediction that takes each instance, -1 for none.
void diagnose(const GroundTruth& truth, const Predictions& predictions, std::size_t n_videos, std::size_t n_classes,
              double tiou, double low, Kind* kind, std::int64_t* taken_by);

}  // namespace ahlm
