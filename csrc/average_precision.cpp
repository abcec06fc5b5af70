#include "average_precision.hpp"

#include <limits>
#include <utility>

namespace ahlm {
namespace {

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

struct Prediction {
  double score;
  std::uint32_t position;  // among those of its class, in input or official order
  std::uint32_t video;
};

// by descending score, then by position
bool before(const Prediction& a, const Prediction& b) noexcept {
  return a.score > b.score || (a.score == b.score && a.position < b.position);
}

// scratch of one thread
struct Scratch {
  std::vector<std::uint32_t> first, count;  // of each video, into `instances`
  std::vector<std::size_t> instances;       // ground truth of the class, by video
  std::vector<double> start, end;           // of `instances`
  std::vector<Prediction> found;            // predictions that reach the lowest threshold with some instance
  std::vector<Prediction> by_video;         // the same, each video's in visiting order
  std::vector<std::size_t> offsets;         // of the video whose first instance this is, into `by_video`
  std::vector<double> overlaps;             // of one prediction with the instances of its video
  std::vector<Prediction> correct;          // that take an instance at some threshold
  std::vector<std::size_t> ranks;           // by position, of the correct ones among all predictions of the class
  std::vector<double> scores;               // of `correct`
  std::vector<std::size_t> ahead;
  std::vector<std::size_t> hits;    // [tiou, instance] positions, then ranks, of the correct predictions
  std::vector<std::size_t> n_hits;  // [tiou]
  std::vector<double> terms;
};

class Evaluation {
 public:
  Evaluation(const GroundTruth& truth, const Predictions& predictions, const OfficialTies& ties, std::size_t n_videos,
             std::size_t n_classes, const double* tious, std::size_t n_tious, double* ap, std::int64_t* taken_by)
      : truth_(truth),
        ties_(ties),
        n_videos_(n_videos),
        n_classes_(n_classes),
        tious_(tious),
        n_tious_(n_tious),
        lowest_(n_tious ? *std::min_element(tious, tious + n_tious) : 0.0),
        ap_(ap),
        taken_by_(taken_by),
        truth_of_class_(truth.class_index, truth.size, n_classes) {
    // one class after the other in memory: the loops over a class then read straight on
    offsets_.assign(n_classes + 1, 0);
    const auto visited = [&](std::size_t i) { return ties.order ? static_cast<std::size_t>(ties.order[i]) : i; };
    for (std::size_t i = 0; i < predictions.size; ++i) ++offsets_[predictions.class_index[visited(i)] + 1];
    std::partial_sum(offsets_.begin(), offsets_.end(), offsets_.begin());
    std::vector<std::size_t> next(offsets_.begin(), offsets_.end() - 1);
    rows_.resize(predictions.size);
    for (std::size_t i = 0; i < predictions.size; ++i) {
      const auto p = visited(i);
      rows_[next[predictions.class_index[p]]++] = {predictions.score[p], predictions.start[p], predictions.end[p],
                                                   static_cast<std::uint32_t>(predictions.video[p]),
                                                   static_cast<std::uint32_t>(p)};
    }
  }

  Scratch scratch() const {
    Scratch s;
    s.first.assign(n_videos_, 0);
    s.count.assign(n_videos_, 0);
    s.n_hits.assign(n_tious_, 0);
    return s;
  }

  void evaluate_class(Scratch& s, std::size_t c) const {
    const auto n_truth = truth_of_class_.count(c);
    if (n_truth == 0) return;
    group_truth(s, c);
    find(s, c);
    sort_by_video(s);
    match(s, c);
    rank(s, c);
    for (std::size_t k = 0; k < n_tious_; ++k) {
      auto* const hits = s.hits.data() + k * n_truth;
      std::transform(hits, hits + s.n_hits[k], hits, [&](std::size_t position) { return s.ranks[position]; });
      std::sort(hits, hits + s.n_hits[k]);
      ap_[k * n_classes_ + c] = interpolated_ap(hits, s.n_hits[k], n_truth, s.terms);
    }
    for (const auto g : s.instances) s.count[truth_.video[g]] = 0;
  }

 private:
  struct Row {
    double score, start, end;
    std::uint32_t video, index;
  };

  double overlap(const Row& row, double start, double end) const noexcept {
    const double both = intersection_of(start, end, row.start, row.end);
    const double either = (end - start) + (row.end - row.start) - both;
    if (both > 0.0) return both / either;
    // the script divides by 0 there, and NaN stands first in its order and is below no threshold
    return either == 0.0 && ties_.order ? std::numeric_limits<double>::infinity() : 0.0;
  }

  // ground truth of the class by video; touches only the videos that have some
  void group_truth(Scratch& s, std::size_t c) const {
    const auto *begin = truth_of_class_.begin(c), *end = truth_of_class_.end(c);
    for (auto* g = begin; g != end; ++g) ++s.count[truth_.video[*g]];
    std::uint32_t next = 0;
    for (auto* g = begin; g != end; ++g) {
      const auto video = truth_.video[*g];
      if (s.count[video] == 0) continue;
      s.first[video] = next;
      next += s.count[video];
      s.count[video] = 0;
    }
    s.instances.resize(truth_of_class_.count(c));
    s.start.resize(s.instances.size());
    s.end.resize(s.instances.size());
    for (auto* g = begin; g != end; ++g) {
      const auto video = truth_.video[*g];
      const auto slot = s.first[video] + s.count[video]++;
      s.instances[slot] = *g;
      s.start[slot] = truth_.start[*g];
      s.end[slot] = truth_.end[*g];
    }
  }

  void find(Scratch& s, std::size_t c) const {
    s.found.clear();
    const Row* const rows = rows_.data() + offsets_[c];
    const auto n = static_cast<std::uint32_t>(offsets_[c + 1] - offsets_[c]);
    for (std::uint32_t i = 0; i < n; ++i) {
      const auto first = s.first[rows[i].video], last = first + s.count[rows[i].video];
      bool reaches = false;
      for (auto j = first; j < last && !reaches; ++j) reaches = overlap(rows[i], s.start[j], s.end[j]) >= lowest_;
      if (reaches) s.found.push_back({rows[i].score, i, rows[i].video});
    }
  }

  // videos do not touch each other: many short sorts instead of a long one
  void sort_by_video(Scratch& s) const {
    s.offsets.assign(s.instances.size() + 1, 0);
    for (const auto& one : s.found) ++s.offsets[s.first[one.video] + 1];
    std::partial_sum(s.offsets.begin(), s.offsets.end(), s.offsets.begin());
    s.by_video.resize(s.found.size());
    for (const auto& one : s.found) s.by_video[s.offsets[s.first[one.video]]++] = one;
    if (ties_.order) return;
    auto first = s.by_video.begin();
    for (const auto offset : s.offsets) {
      const auto last = s.by_video.begin() + static_cast<std::ptrdiff_t>(offset);
      std::sort(first, last, before);
      first = last;
    }
  }

  void match(Scratch& s, std::size_t c) const {
    const auto n_truth = s.instances.size();
    s.hits.resize(n_tious_ * n_truth);
    s.overlaps.resize(n_truth);
    s.correct.clear();
    std::fill(s.n_hits.begin(), s.n_hits.end(), 0);
    const Row* const rows = rows_.data() + offsets_[c];
    for (const auto& one : s.by_video) {
      const Row& row = rows[one.position];
      const auto first = s.first[row.video], last = first + s.count[row.video];
      double largest = 0.0;
      for (auto j = first; j < last; ++j)
        largest = std::max(largest, s.overlaps[j] = overlap(row, s.start[j], s.end[j]));
      const std::int64_t* ranks = nullptr;
      if (ties_.offsets && ties_.offsets[row.index] >= 0 &&
          static_cast<std::size_t>(ties_.offsets[row.index]) + (last - first) <= ties_.n_ranks)
        ranks = ties_.ranks + ties_.offsets[row.index];
      bool takes = false;
      for (std::size_t k = 0; k < n_tious_; ++k) {
        if (largest < tious_[k]) continue;
        std::int64_t* const taken_by = taken_by_ + k * truth_.size;
        double best = tious_[k];
        auto chosen = last;
        for (auto j = first; j < last; ++j) {
          if (taken_by[s.instances[j]] >= 0) continue;
          const bool wins_tie = chosen == last || !ranks || ranks[j - first] < ranks[chosen - first];
          if (s.overlaps[j] > best || (s.overlaps[j] == best && wins_tie)) best = s.overlaps[j], chosen = j;
        }
        if (chosen == last) continue;
        taken_by[s.instances[chosen]] = row.index;
        s.hits[k * n_truth + s.n_hits[k]++] = one.position;
        takes = true;
      }
      if (takes) s.correct.push_back(one);
    }
  }

  // a sort of all predictions would tell the same: only the ranks of the correct ones matter
  void rank(Scratch& s, std::size_t c) const {
    const Row* const rows = rows_.data() + offsets_[c];
    const auto n = static_cast<std::uint32_t>(offsets_[c + 1] - offsets_[c]);
    s.ranks.resize(n);
    if (ties_.order) {
      for (const auto& one : s.correct) s.ranks[one.position] = one.position;
      return;
    }
    std::sort(s.correct.begin(), s.correct.end(), before);
    s.scores.clear();
    for (const auto& one : s.correct) s.scores.push_back(one.score);
    s.ahead.assign(s.correct.size() + 1, 0);
    for (std::uint32_t i = 0; i < n; ++i) {
      // a search without branches, which the processor could only guess
      const double* better = s.scores.data();
      for (std::size_t left = s.scores.size(); left > 0;) {
        const std::size_t half = (left + 1) / 2;
        better += better[half - 1] > rows[i].score ? half : 0;
        left -= half;
      }
      auto place = static_cast<std::size_t>(better - s.scores.data());
      if (place < s.scores.size() && s.scores[place] == rows[i].score)
        place = static_cast<std::size_t>(
            std::lower_bound(s.correct.begin(), s.correct.end(), Prediction{rows[i].score, i, 0}, before) -
            s.correct.begin());
      ++s.ahead[place];
    }
    std::partial_sum(s.ahead.begin(), s.ahead.end(), s.ahead.begin());  // each counts itself too
    for (std::size_t i = 0; i < s.correct.size(); ++i) s.ranks[s.correct[i].position] = s.ahead[i] - 1;
  }

  const GroundTruth& truth_;
  const OfficialTies& ties_;
  const std::size_t n_videos_, n_classes_;
  const double* const tious_;
  const std::size_t n_tious_;
  const double lowest_;
  double* const ap_;
  std::int64_t* const taken_by_;
  const Groups truth_of_class_;
  std::vector<std::size_t> offsets_;  // of each class, into `rows_`
  std::vector<Row> rows_;
};

}  // namespace

double interpolated_ap(const std::size_t* hits, std::size_t n_hits, std::size_t n_positive,
                       std::vector<double>& terms) {
  const double positives = static_cast<double>(n_positive);
  // recall rises only at hits, and between two of them precision only falls: interpolated from the right, the hits
  // are all that matters. A last rise to full recall at precision 0 counts as a term in NumPy's order of summation
  terms.assign(n_hits + (n_hits < n_positive), 0.0);
  double precision = 0.0;
  for (std::size_t hit = n_hits; hit-- > 0;) {
    const double true_positives = static_cast<double>(hit + 1);
    precision = std::max(precision, true_positives / static_cast<double>(hits[hit] + 1));
    terms[hit] = (true_positives / positives - (true_positives - 1.0) / positives) * precision;
  }
  return pairwise_sum(terms.data(), terms.size());
}

void average_precision(const GroundTruth& truth, const Predictions& predictions, const OfficialTies& ties,
                       std::size_t n_videos, std::size_t n_classes, const double* tious, std::size_t n_tious,
                       unsigned n_threads, double* ap, std::int64_t* taken_by) {
  std::fill(ap, ap + n_tious * n_classes, std::numeric_limits<double>::quiet_NaN());
  std::fill(taken_by, taken_by + n_tious * truth.size, -1);
  const Evaluation evaluation(truth, predictions, ties, n_videos, n_classes, tious, n_tious, ap, taken_by);
  parallel(
      n_classes, n_threads, [&] { return evaluation.scratch(); },
      [&](Scratch& scratch, std::size_t c) { evaluation.evaluate_class(scratch, c); });
}

}  // namespace ahlm
