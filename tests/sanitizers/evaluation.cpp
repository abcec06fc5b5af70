// Random, degenerate and tied inputs through all of the evaluator's core, for a build with sanitizers.
#include <cmath>
#include <cstdio>
#include <new>
#include <random>
#include <vector>

#include "average_precision.hpp"
#include "diagnosis.hpp"
#include "ranking.hpp"
#include "suppression.hpp"

namespace {

std::mt19937_64 rng(0);

struct Columns {
  std::vector<std::int64_t> video, class_index;
  std::vector<double> start, end, score;

  Columns(std::size_t n, std::size_t n_videos, std::size_t n_classes) {
    const double odd[] = {0.0, -0.0, 1e308, -1e308, INFINITY, -INFINITY, 5e-324};
    for (std::size_t i = 0; i < n; ++i) {
      video.push_back(static_cast<std::int64_t>(rng() % n_videos));
      class_index.push_back(static_cast<std::int64_t>(rng() % n_classes));
      start.push_back(0.5 * static_cast<double>(rng() % 20));
      end.push_back(start.back() + 0.5 * (static_cast<double>(rng() % 9) - 1.0));
      score.push_back(static_cast<double>(rng() % 10) / 10.0);
      if (rng() % 50 == 0) score.back() = odd[rng() % 7];
      if (rng() % 100 == 0) start.back() = odd[rng() % 7];
    }
  }
};

bool fraction(double value) { return std::isnan(value) || (value >= 0.0 && value <= 1.0 + 1e-12); }

}  // namespace

int main() {
  const double tious[] = {0.1, 0.5, 0.5, 0.95, 1.0};
  for (int round = 0; round < 500; ++round) {
    const std::size_t n_videos = 1 + rng() % 6, n_classes = 1 + rng() % 5, n_tious = rng() % 6;
    const Columns t(rng() % 40, n_videos, n_classes), p(rng() % 300, n_videos, n_classes);
    const std::size_t n_truth = t.video.size(), n = p.video.size();
    const ahlm::GroundTruth truth{n_truth, t.video.data(), t.class_index.data(), t.start.data(), t.end.data()};
    const ahlm::Predictions found{n,              p.video.data(), p.class_index.data(),
                                  p.score.data(), p.start.data(), p.end.data()};
    // any order and any ranks, right or wrong, must stay inside their arrays
    std::vector<std::int64_t> order(n), offsets(n), ranks(rng() % 60);
    for (auto& value : order) value = static_cast<std::int64_t>(rng() % n);
    for (auto& value : offsets) value = static_cast<std::int64_t>(rng() % 80) - 1;
    for (auto& value : ranks) value = static_cast<std::int64_t>(rng() % 9);
    ahlm::OfficialTies ties{};
    if (round % 2) ties = {order.data(), offsets.data(), ranks.data(), ranks.size()};
    std::vector<double> ap(n_tious * n_classes);
    std::vector<std::int64_t> taken_by(n_tious * n_truth), first(n_tious * n_truth), by(n_truth);
    const unsigned threads = 1 + rng() % 3;
    ahlm::average_precision(truth, found, ties, n_videos, n_classes, tious, n_tious, threads, ap.data(),
                            taken_by.data());
    for (const double value : ap)
      if (!fraction(value)) return std::printf("AP %g\n", value), 1;
    ahlm::first_ranks(truth, found, n_videos, tious, n_tious, threads, first.data());
    std::vector<ahlm::Kind> kind(n);
    ahlm::diagnose(truth, found, n_videos, n_classes, 0.5, 0.1, kind.data(), by.data());

    std::vector<char> labels(n_videos * n_classes);
    std::vector<double> scores(n_videos * n_classes), class_ap(n_classes);
    std::vector<std::int64_t> best(n_videos);
    for (auto& label : labels) label = rng() % 3 == 0;
    for (auto& score : scores) score = static_cast<double>(rng() % 5);
    ahlm::classification(scores.data(), reinterpret_cast<const bool*>(labels.data()), n_videos, n_classes,
                         class_ap.data(), best.data());
    for (const double value : class_ap)
      if (!fraction(value)) return std::printf("video-level AP %g\n", value), 1;

    std::vector<double> softened = p.score;
    const ahlm::Detections detections{n, p.class_index.data(), p.score.data(), p.start.data(), p.end.data()};
    const auto kept =
        ahlm::suppress(detections, 0.5, round % 3 ? 0.3 : -1.0, round % 5 ? 0.05 : -10.0, round % 2, softened.data());
    if (kept.size() > n) return std::printf("%zu of %zu kept\n", kept.size(), n), 1;
  }
  for (const unsigned threads : {1u, 3u}) {
    const auto work = [](int, std::size_t i) {
      if (i % 7 == 3) throw std::bad_alloc();
    };
    try {
      ahlm::parallel(50, threads, [] { return 0; }, work);
      return std::printf("an exception of %u threads was lost\n", threads), 1;
    } catch (const std::bad_alloc&) {
    }
  }
  return 0;
}
