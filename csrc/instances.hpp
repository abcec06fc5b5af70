// Ground truth and predictions in columns, and what every score of them needs. Plain C++17, no Python.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <mutex>
#include <numeric>
#include <system_error>
#include <thread>
#include <vector>

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
  const double* score;  // no NaN, unless an order is given
  const double* start;
  const double* end;
};

inline double intersection_of(double start_a, double end_a, double start_b, double end_b) noexcept {
  return std::max(0.0, std::min(end_a, end_b) - std::max(start_a, start_b));
}

// 0 where the union is empty
inline double temporal_iou(double start_a, double end_a, double start_b, double end_b) noexcept {
  const double both = intersection_of(start_a, end_a, start_b, end_b);
  const double either = (end_a - start_a) + (end_b - start_b) - both;
  return either > 0.0 ? both / either : 0.0;
}

// indices 0..n-1 grouped by key, input order kept inside a group
struct Groups {
  std::vector<std::size_t> offsets;  // of each key, into `members`, and the end
  std::vector<std::size_t> members;

  Groups(const std::int64_t* keys, std::size_t n, std::size_t n_keys) : offsets(n_keys + 1, 0), members(n) {
    for (std::size_t i = 0; i < n; ++i) ++offsets[keys[i] + 1];
    std::partial_sum(offsets.begin(), offsets.end(), offsets.begin());
    std::vector<std::size_t> next(offsets.begin(), offsets.end() - 1);
    for (std::size_t i = 0; i < n; ++i) members[next[keys[i]]++] = i;
  }
  const std::size_t* begin(std::size_t key) const noexcept { return members.data() + offsets[key]; }
  const std::size_t* end(std::size_t key) const noexcept { return members.data() + offsets[key + 1]; }
  std::size_t count(std::size_t key) const noexcept { return offsets[key + 1] - offsets[key]; }
};

// AP from the ranks, rising, of the correct ones among the ranked; `terms` is scratch
double interpolated_ap(const std::size_t* hits, std::size_t n_hits, std::size_t n_positive, std::vector<double>& terms);

// work(scratch, i) for i in [0, n), each once, on several threads; make() gives each thread its scratch. The first
// exception of any of them, no memory perhaps, is thrown again here.
template <typename Make, typename Work>
void parallel(std::size_t n, unsigned n_threads, const Make& make, const Work& work) {
  std::atomic<std::size_t> next{0};
  std::exception_ptr failure;
  std::once_flag failed;
  const auto run = [&] {
    try {
      auto scratch = make();
      for (std::size_t i = next++; i < n; i = next++) work(scratch, i);
    } catch (...) {
      std::call_once(failed, [&] { failure = std::current_exception(); });
    }
  };
  std::vector<std::thread> threads;
  threads.reserve(std::min<std::size_t>(n_threads, n));
  try {
    for (unsigned t = 1; t < n_threads && t < n; ++t) threads.emplace_back(run);
  } catch (const std::system_error&) {
    // fewer do the same work
  }
  run();
  for (auto& thread : threads) thread.join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace ahlm
