// Non-maximum suppression of temporal detections. Plain C++17, no Python.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace ahlm {

struct Detections {
  std::size_t size;
  const std::int64_t* class_index;
  const double* score;  // finite
  const double* start;
  const double* end;
};

// Indices that stay, best first; `scores` holds the score of every detection and is softened in place.
// sigma < 0: hard suppression above `tiou`, with `min_score` unused; else soft, with `tiou` unused. Classes do not
// touch each other. Ties go to the earlier index.
std::vector<std::int64_t> suppress(const Detections& detections, double tiou, double sigma, double min_score,
                                   double extra, double* scores);

}  // namespace ahlm
