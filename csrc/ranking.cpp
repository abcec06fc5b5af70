#include "ranking.hpp"

#include <limits>

namespace ahlm {

void first_ranks(const GroundTruth& truth, const Predictions& proposals, std::size_t n_videos, const double* tious,
                 std::size_t n_tious, unsigned n_threads, std::int64_t* ranks) {
  std::fill(ranks, ranks + n_tious * truth.size, -1);
  const Groups truth_of_video(truth.video, truth.size, n_videos);
  Groups by_video(proposals.video, proposals.size, n_videos);
  const auto make = [] { return std::vector<double>(); };
  parallel(n_videos, n_threads, make, [&](std::vector<double>& best, std::size_t video) {
    const auto n_truth = truth_of_video.count(video);
    if (n_truth == 0) return;
    auto *const first = by_video.members.data() + by_video.offsets[video], *const last = first + by_video.count(video);
    std::sort(first, last, [&](std::size_t a, std::size_t b) {
      return proposals.score[a] != proposals.score[b] ? proposals.score[a] > proposals.score[b] : a < b;
    });
    best.assign(n_truth, 0.0);
    for (auto* p = first; p != last; ++p) {
      for (std::size_t j = 0; j < n_truth; ++j) {
        const auto g = truth_of_video.begin(video)[j];
        const double overlap = temporal_iou(proposals.start[*p], proposals.end[*p], truth.start[g], truth.end[g]);
        if (overlap <= best[j]) continue;
        best[j] = overlap;
        for (std::size_t k = 0; k < n_tious; ++k) {
          auto& rank = ranks[k * truth.size + g];
          if (rank < 0 && overlap >= tious[k]) rank = p - first;
        }
      }
    }
  });
}

void classification(const double* scores, const bool* labels, std::size_t n_videos, std::size_t n_classes, double* ap,
                    std::int64_t* best_rank) {
  // only the ranks of the videos that have a class matter: each video is looked up among those of every class
  struct Scored {
    double score;
    std::size_t video;
  };
  const auto before = [](const Scored& a, const Scored& b) {
    return a.score > b.score || (a.score == b.score && a.video < b.video);
  };
  std::vector<std::vector<Scored>> own(n_classes);
  for (std::size_t video = 0; video < n_videos; ++video)
    for (std::size_t c = 0; c < n_classes; ++c)
      if (labels[video * n_classes + c]) own[c].push_back({scores[video * n_classes + c], video});
  std::vector<std::vector<std::size_t>> ahead(n_classes);
  for (std::size_t c = 0; c < n_classes; ++c) {
    std::sort(own[c].begin(), own[c].end(), before);
    ahead[c].assign(own[c].size() + 1, 0);
  }
  for (std::size_t video = 0; video < n_videos; ++video)
    for (std::size_t c = 0; c < n_classes; ++c) {
      const Scored one{scores[video * n_classes + c], video};
      ++ahead[c][std::lower_bound(own[c].begin(), own[c].end(), one, before) - own[c].begin()];
    }
  std::vector<double> terms;
  for (std::size_t c = 0; c < n_classes; ++c) {
    std::partial_sum(ahead[c].begin(), ahead[c].end(), ahead[c].begin());
    for (auto& rank : ahead[c]) --rank;  // each counts itself too
    ap[c] = own[c].empty() ? std::numeric_limits<double>::quiet_NaN()
                           : interpolated_ap(ahead[c].data(), own[c].size(), own[c].size(), terms);
  }
  for (std::size_t video = 0; video < n_videos; ++video) {
    const double* const row = scores + video * n_classes;
    const bool* const has = labels + video * n_classes;
    std::size_t best = n_classes;
    for (std::size_t c = 0; c < n_classes; ++c)
      if (has[c] && (best == n_classes || row[c] > row[best])) best = c;
    best_rank[video] = -1;
    if (best == n_classes) continue;
    best_rank[video] = 0;
    for (std::size_t c = 0; c < n_classes; ++c)
      best_rank[video] += row[c] > row[best] || (row[c] == row[best] && c < best);
  }
}

}  // namespace ahlm
