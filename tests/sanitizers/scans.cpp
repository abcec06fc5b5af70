// Both scans and their reverses on small shapes of every kind, each array of just its size, for a build with sanitizers.
#include <cmath>
#include <cstdio>
#include <deque>
#include <random>
#include <vector>

#include "change_point_scan.hpp"
#include "scan.hpp"
#include "snippet_scan.hpp"

namespace {

std::mt19937_64 rng(0);

struct Arrays {
  std::deque<std::vector<float>> kept;
  float* random(std::int64_t size, float scale, bool wanted = true) {
    if (!wanted) return nullptr;
    std::normal_distribution<float> normal(0.0f, scale);
    kept.emplace_back(static_cast<std::size_t>(size));
    for (float& value : kept.back()) value = normal(rng);
    return kept.back().data();
  }
  float* unset(std::int64_t size, bool wanted = true) {
    if (!wanted) return nullptr;
    kept.emplace_back(static_cast<std::size_t>(size), std::nanf(""));
    return kept.back().data();
  }
  bool finite() const {
    for (const auto& array : kept)
      for (const float value : array)
        if (!std::isfinite(value)) return false;
    return true;
  }
};

struct Flags {
  std::vector<char> values;
  bool* data() { return reinterpret_cast<bool*>(values.data()); }
  explicit Flags(std::int64_t size) : values(static_cast<std::size_t>(size)) {
    for (char& value : values) value = rng() % 3 == 0;
  }
};

bool change_points(const ahlm::ScanSizes& s, const std::int64_t* lengths, int reading, unsigned threads) {
  Arrays a;
  const std::int64_t b = s.batch, t = s.snippets, z = s.latent, h = s.state;
  ahlm::ChangePointRules rules{reading % 2 == 0,
                               static_cast<ahlm::ChangePrior>(reading / 2 % 3),
                               reading / 6 % 2 == 1,
                               0.7f,
                               0.3f,
                               static_cast<std::int64_t>(rng() % 3),
                               rng() % 2 == 0,
                               0.15f,
                               0.15f,
                               0.5f,
                               0.15f,
                               0.9f};
  const bool full = rules.change_prior == ahlm::ChangePrior::full;
  const bool constant = rules.change_prior == ahlm::ChangePrior::constant;
  const bool uses_prior = full || !rules.held, uses_p = uses_prior || !constant;
  Flags forced(b * t), changed(b * t);
  ahlm::ChangePointInput in{};
  in.start = a.random(b * t * 2 * z, 1);
  in.prior = a.random(b * t * 2 * z, 1, uses_prior);
  in.posterior = a.random(b * t * 2 * z, 1, rules.transition);
  in.gru_input = a.random(3 * h * z, 0.3f);
  in.gru_state = a.random(3 * h * h, 0.3f);
  in.gru_input_bias = a.random(3 * h, 0.1f);
  in.gru_state_bias = a.random(3 * h, 0.1f);
  in.prior_state = a.random(2 * z * h, 0.3f, uses_p);
  in.prior_bias = a.random(2 * z, 0.3f, !full);
  in.posterior_state = a.random(2 * z * h, 0.3f, rules.transition);
  in.initial_state = a.random(h, 1);
  in.noise = a.random(b * t * z, 1, rng() % 2 == 0);
  in.lengths = lengths;
  in.forced_changes = rng() % 2 ? forced.data() : nullptr;
  const ahlm::ChangePointOutput out{changed.data(),      a.unset(b * t),     a.unset(b * t),     a.unset(b * t),
                                    a.unset(b * t * z), a.unset(b * t * z), a.unset(b * t * z), a.unset(b * t * h)};
  ahlm::change_point_scan(s, rules, in, threads, out);
  const ahlm::ChangePointGradients given{a.random(b * t, 1),     a.random(b * t, 1),     a.random(b * t, 1),
                                         a.random(b * t * z, 1), a.random(b * t * z, 1), a.random(b * t * z, 1),
                                         a.random(b * t * h, 1)};
  const ahlm::ChangePointInputGradients found{a.unset(b * t * 2 * z),
                                              a.unset(b * t * 2 * z, uses_prior),
                                              a.unset(b * t * 2 * z, rules.transition),
                                              a.unset(3 * h * z),
                                              a.unset(3 * h * h),
                                              a.unset(3 * h),
                                              a.unset(3 * h),
                                              a.unset(2 * z * h, uses_p),
                                              a.unset(2 * z, !full),
                                              a.unset(2 * z * h, rules.transition),
                                              a.unset(h)};
  ahlm::change_point_scan_backward(s, rules, in, out, given, threads, found);
  return a.finite();
}

bool snippets(const ahlm::ScanSizes& s, const std::int64_t* lengths, unsigned threads) {
  Arrays a;
  const std::int64_t b = s.batch, t = s.snippets, z = s.latent, h = s.state;
  Flags changes(b * t);
  const ahlm::SnippetInput in{a.random(b * t * 2 * z, 1), a.random(b * t * 2 * z, 1), a.random(3 * h * z, 0.3f),
                              a.random(3 * h * h, 0.3f),  a.random(3 * h, 0.1f),      a.random(3 * h, 0.1f),
                              a.random(2 * z * h, 0.3f),  a.random(2 * z * h, 0.3f),  a.random(h, 1),
                              a.random(b * t * z, 1),     changes.data(),             lengths};
  const ahlm::SnippetOutput out{a.unset(b * t), a.unset(b * t * z), a.unset(b * t * h)};
  ahlm::snippet_scan(s, in, threads, out);
  const ahlm::SnippetGradients given{a.random(b * t, 1), a.random(b * t * z, 1), a.random(b * t * h, 1)};
  const ahlm::SnippetInputGradients found{a.unset(b * t * 2 * z), a.unset(b * t * 2 * z), a.unset(3 * h * z),
                                          a.unset(3 * h * h),     a.unset(3 * h),         a.unset(3 * h),
                                          a.unset(2 * z * h),     a.unset(2 * z * h),     a.unset(h)};
  ahlm::snippet_scan_backward(s, in, out, given, threads, found);
  return a.finite();
}

// a pool that has nobody to give: what was meant for two threads, one must do
void alone(void (*run)(void*), void* data, unsigned, unsigned) { run(data); }

}  // namespace

int main() {
  for (int round = 0; round < 60; ++round) {
    const auto up_to = [&](std::int64_t most) { return 1 + static_cast<std::int64_t>(rng() % most); };
    ahlm::set_thread_pool(rng() % 4 ? nullptr : alone);
    const bool wide = rng() % 4 == 0;  // wide enough for two threads to share a video
    const std::int64_t batch = up_to(wide ? 2 : 60), t = up_to(40), z = up_to(36), h = up_to(50) + (wide ? 150 : 0);
    std::vector<std::int64_t> lengths;
    for (std::int64_t i = 0; i < batch; ++i) lengths.push_back(up_to(t));
    const ahlm::ScanSizes sizes = ahlm::scan_sizes(batch, t, z, h);
    const auto threads = static_cast<unsigned>(up_to(wide ? 4 : 3));
    if (!change_points(sizes, lengths.data(), round % 12, threads)) return std::printf("round %d\n", round), 1;
    if (!snippets(sizes, lengths.data(), threads)) return std::printf("snippet scan, round %d\n", round), 1;
  }
  return 0;
}
