// Random, degenerate and tied inputs through the core, for a build with sanitizers.
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "average_precision.hpp"

int main() {
  std::mt19937_64 rng(0);
  const double tious[] = {0.1, 0.5, 0.5, 0.95, 1.0};
  for (int round = 0; round < 2000; ++round) {
    const std::size_t n_videos = 1 + rng() % 6, n_classes = 1 + rng() % 5;
    const std::size_t n_truth = rng() % 40, n = rng() % 300, n_tious = rng() % 6;
    std::vector<std::int64_t> video, class_index, truth_video, truth_class;
    std::vector<double> start, end, score, truth_start, truth_end;
    const auto fill = [&](std::size_t count, auto& videos, auto& classes, auto& starts, auto& ends) {
      for (std::size_t i = 0; i < count; ++i) {
        videos.push_back(static_cast<std::int64_t>(rng() % n_videos));
        classes.push_back(static_cast<std::int64_t>(rng() % n_classes));
        starts.push_back(0.5 * static_cast<double>(rng() % 20));
        ends.push_back(starts.back() + 0.5 * (static_cast<double>(rng() % 9) - 1.0));
      }
    };
    fill(n_truth, truth_video, truth_class, truth_start, truth_end);
    fill(n, video, class_index, start, end);
    for (std::size_t i = 0; i < n; ++i) score.push_back(static_cast<double>(rng() % 10) / 10.0);
    const ahlm::GroundTruth truth{n_truth, truth_video.data(), truth_class.data(), truth_start.data(),
                                  truth_end.data()};
    const ahlm::Predictions predictions{n,           video.data(), class_index.data(), score.data(), start.data(),
                                        end.data(),  nullptr,      nullptr,            nullptr};
    std::vector<double> ap(n_tious * n_classes);
    std::vector<std::int64_t> matched(n_tious * n);
    ahlm::average_precision(truth, predictions, n_videos, n_classes, tious, n_tious, 1 + rng() % 3, ap.data(),
                            round % 2 ? matched.data() : nullptr);
    for (const double value : ap)
      if (!std::isnan(value) && !(value >= 0.0 && value <= 1.0 + 1e-12)) return std::printf("AP %g\n", value), 1;
  }
  return 0;
}
