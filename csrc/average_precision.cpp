#include "average_precision.hpp"

#include <algorithm>
#include <atomic>
#include <limits>
#include <numeric>
#include <thread>
#include <utility>
#include <vector>

namespace ahlm {
namespace {

double temporal_iou(double start_a, double end_a, double start_b, double end_b) noexcept {
  const double intersection = std::max(0.0, std::min(end_a, end_b) - std::max(start_a, start_b));
  const double union_ = (end_a - start_a) + (end_b - start_b) - intersection;
  return union_ > 0.0 ? intersection / union_ : 0.0;
}

// NumPy's summation order, so that results agree with it to the last bit
double pairwise_sum(const double* values, std::size_t n) noexcept {
  if (n < 8) {
    double sum = 0.0;
    for (std::size_t i = 0; i < n; ++i) sum += values[i];
    return sum;
  }
  if (n <= 128) {
    double r[8];
    std::copy(values, values + 8, r);
    std::size_t i = 8;
    for (; i + 8 <= n; i += 8)
      for (std::size_t j = 0; j < 8; ++j) r[j] += values[i + j];
    double sum = ((r[0] + r[1]) + (r[2] + r[3])) + ((r[4] + r[5]) + (r[6] + r[7]));
    for (; i < n; ++i) sum += values[i];
    return sum;
  }
  std::size_t half = n / 2;
  half -= half % 8;
  return pairwise_sum(values, half) + pairwise_sum(values + half, n - half);
}

// indices 0..n-1 grouped by key, input order kept inside a group
void group(const std::int64_t* keys, std::size_t n, std::size_t n_keys, std::vector<std::int64_t>& offsets,
           std::vector<std::int64_t>& members) {
  offsets.assign(n_keys + 1, 0);
  for (std::size_t i = 0; i < n; ++i) ++offsets[keys[i] + 1];
  std::partial_sum(offsets.begin(), offsets.end(), offsets.begin());
  std::vector<std::int64_t> next(offsets.begin(), offsets.end() - 1);
  members.resize(n);
  for (std::size_t i = 0; i < n; ++i) members[next[keys[i]]++] = static_cast<std::int64_t>(i);
}

// scratch of one thread, sized before the loop over predictions
struct Scratch {
  std::vector<std::int64_t> first, count;               // of each video, into `instances`
  std::vector<std::int64_t> instances;                  // ground truth of the class, by video
  std::vector<std::pair<double, std::int64_t>> ranked;  // score and index of the class's predictions
  std::vector<double> overlaps;                         // of one prediction with the instances of its video
  std::vector<char> taken;                              // [tiou, instance]
  std::vector<std::size_t> hits;                        // [tiou, instance] ranks of the correct predictions, rising
  std::vector<std::size_t> n_hits;                      // [tiou]
  std::vector<double> terms;
};

void evaluate_class(const GroundTruth& truth, const Predictions& predictions, const std::int64_t* truth_of_class,
                    std::size_t n_truth, const std::int64_t* visits, std::size_t n_visits, std::size_t n_classes,
                    std::size_t class_index, const double* tious, std::size_t n_tious, double* ap,
                    std::int64_t* matched, Scratch& s) {
  // ground truth of this class by video; touches only the videos that have some
  for (std::size_t g = 0; g < n_truth; ++g) ++s.count[truth.video[truth_of_class[g]]];
  std::int64_t begin = 0;
  for (std::size_t g = 0; g < n_truth; ++g) {
    const auto video = truth.video[truth_of_class[g]];
    if (s.first[video] < 0) {
      s.first[video] = begin;
      begin += s.count[video];
      s.count[video] = 0;
    }
  }
  s.instances.resize(n_truth);
  for (std::size_t g = 0; g < n_truth; ++g) {
    const auto video = truth.video[truth_of_class[g]];
    s.instances[s.first[video] + s.count[video]++] = truth_of_class[g];
  }
  s.taken.assign(n_tious * n_truth, 0);
  s.hits.resize(n_tious * n_truth);
  s.n_hits.assign(n_tious, 0);
  s.overlaps.resize(n_truth);
  const double lowest = n_tious ? *std::min_element(tious, tious + n_tious) : 0.0;

  for (std::size_t i = 0; i < n_visits; ++i) {
    const auto p = visits[i];
    const auto video = predictions.video[p];
    const auto first = s.first[video];
    if (first < 0) continue;
    const auto last = first + s.count[video];
    const std::int64_t* ranks = nullptr;
    if (predictions.tie_offsets && predictions.tie_offsets[p] >= 0)
      ranks = predictions.tie_ranks + predictions.tie_offsets[p] - first;
    double largest = 0.0;
    for (auto j = first; j < last; ++j) {
      const auto g = s.instances[j];
      s.overlaps[j] = temporal_iou(truth.start[g], truth.end[g], predictions.start[p], predictions.end[p]);
      largest = std::max(largest, s.overlaps[j]);
    }
    if (largest < lowest) continue;
    for (std::size_t k = 0; k < n_tious; ++k) {
      if (largest < tious[k]) continue;
      char* taken = s.taken.data() + k * n_truth;
      double best = tious[k];
      std::int64_t chosen = -1;
      for (auto j = first; j < last; ++j) {
        if (taken[j]) continue;
        const double overlap = s.overlaps[j];
        const bool wins_tie = chosen < 0 || !ranks || ranks[j] < ranks[chosen];
        if (overlap > best || (overlap == best && wins_tie)) best = overlap, chosen = j;
      }
      if (chosen < 0) continue;
      taken[chosen] = 1;
      s.hits[k * n_truth + s.n_hits[k]++] = i;
      if (matched) matched[k * predictions.size + p] = s.instances[chosen];
    }
  }

  const double n_positive = static_cast<double>(n_truth);
  for (std::size_t k = 0; k < n_tious; ++k) {
    const std::size_t* hits = s.hits.data() + k * n_truth;
    const std::size_t n_hits = s.n_hits[k];
    // recall rises only at hits, and between two of them precision only falls: interpolated from the right, the hits
    // are all that matters. A last rise to full recall at precision 0 counts as a term in NumPy's order of summation
    s.terms.assign(n_hits + (n_hits < n_truth), 0.0);
    double precision = 0.0;
    for (std::size_t hit = n_hits; hit-- > 0;) {
      const double true_positives = static_cast<double>(hit + 1);
      precision = std::max(precision, true_positives / static_cast<double>(hits[hit] + 1));
      s.terms[hit] = (true_positives / n_positive - (true_positives - 1.0) / n_positive) * precision;
    }
    ap[k * n_classes + class_index] = pairwise_sum(s.terms.data(), s.terms.size());
  }
  for (std::size_t g = 0; g < n_truth; ++g) {
    s.first[truth.video[truth_of_class[g]]] = -1;
    s.count[truth.video[truth_of_class[g]]] = 0;
  }
}

}  // namespace

void average_precision(const GroundTruth& truth, const Predictions& predictions, std::size_t n_videos,
                       std::size_t n_classes, const double* tious, std::size_t n_tious, unsigned n_threads, double* ap,
                       std::int64_t* matched) {
  std::fill(ap, ap + n_tious * n_classes, std::numeric_limits<double>::quiet_NaN());
  if (matched) std::fill(matched, matched + n_tious * predictions.size, -1);
  std::vector<std::int64_t> truth_offsets, truth_members, visit_offsets, visits;
  group(truth.class_index, truth.size, n_classes, truth_offsets, truth_members);
  if (predictions.order) {
    std::vector<std::int64_t> keys(predictions.size);
    for (std::size_t i = 0; i < predictions.size; ++i) keys[i] = predictions.class_index[predictions.order[i]];
    group(keys.data(), predictions.size, n_classes, visit_offsets, visits);
    for (auto& visit : visits) visit = predictions.order[visit];
  } else {
    group(predictions.class_index, predictions.size, n_classes, visit_offsets, visits);
  }

  std::atomic<std::size_t> next{0};
  const auto work = [&] {
    Scratch scratch;
    scratch.first.assign(n_videos, -1);
    scratch.count.assign(n_videos, 0);
    for (std::size_t c = next++; c < n_classes; c = next++) {
      const auto n_truth = static_cast<std::size_t>(truth_offsets[c + 1] - truth_offsets[c]);
      if (n_truth == 0) continue;
      auto* const begin = visits.data() + visit_offsets[c];
      auto* const end = visits.data() + visit_offsets[c + 1];
      if (!predictions.order) {
        // scores beside their indices: sorting indices alone would fetch every score from far away, again and again
        scratch.ranked.clear();
        for (auto* visit = begin; visit != end; ++visit) scratch.ranked.emplace_back(predictions.score[*visit], *visit);
        std::sort(scratch.ranked.begin(), scratch.ranked.end(), [](const auto& a, const auto& b) {
          return a.first > b.first || (a.first == b.first && a.second < b.second);
        });
        std::transform(scratch.ranked.begin(), scratch.ranked.end(), begin, [](const auto& r) { return r.second; });
      }
      evaluate_class(truth, predictions, truth_members.data() + truth_offsets[c], n_truth, begin,
                     static_cast<std::size_t>(end - begin), n_classes, c, tious, n_tious, ap, matched, scratch);
    }
  };
  std::vector<std::thread> threads;
  for (unsigned t = 1; t < n_threads && t < n_classes; ++t) threads.emplace_back(work);
  work();
  for (auto& thread : threads) thread.join();
}

}  // namespace ahlm
