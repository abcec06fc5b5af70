// The GRU cell of both scans for the rows of a tile; gates in the order reset, update, candidate, as torch has them.
#pragma once

#include "scan_pair.hpp"

namespace {

using ahlm::GruGradients;
using ahlm::GruWeights;
using ahlm::ScanSizes;
using ahlm::ScanTile;

// what the input of `n_rows` rows and the state of `n_states` give the gates, before the nonlinearities: [rows, gate_row]
inline void gru_products(const ScanSizes& s, const GruWeights& w, std::int64_t n_rows, const float* v,
                         std::int64_t n_states, const float* d, float* from_input, float* from_state,
                         ScanHelper* helper = nullptr) {
  const std::int64_t width = 3 * s.state_pad;
  multiply_all(helper, {{n_rows, width, s.latent, dense(v, s.latent_row), packed(w.input, s.latent), from_input,
                         s.gate_row, From::bias, w.input_bias},
                        {n_states, width, s.state, dense(d, s.state_row), packed(w.state, s.state), from_state,
                         s.gate_row, From::bias, w.state_bias}});
}

// the next state; the gates themselves replace `x` where the reverse scan wants them
template <bool kKeepGates>
AHLM_INLINE void gru_row(std::int64_t n, float* x, const float* h, const float* d, float* next) {
  for (std::int64_t i = 0; i < n; i += kLanes) {
    const Vec reset = sigmoid(load(x + i) + load(h + i));
    const Vec update = sigmoid(load(x + n + i) + load(h + n + i));
    const Vec candidate = tanh(load(x + 2 * n + i) + reset * load(h + 2 * n + i));
    store(next + i, candidate + update * (load(d + i) - candidate));
    if (kKeepGates) {
      store(x + i, reset);
      store(x + n + i, update);
      store(x + 2 * n + i, candidate);
    }
  }
}

// from the gates in `x` and the candidate's state part in `h` to the gradients of both products, in `x` and `to_h`;
// returns in `to_d` the part of the old state's gradient that does not pass through the weights
AHLM_INLINE void gru_row_backward(std::int64_t n, float* x, const float* h, const float* d, const float* gradient,
                                  float* to_h, float* to_d) {
  for (std::int64_t i = 0; i < n; i += kLanes) {
    const Vec g = load(gradient + i), reset = load(x + i), update = load(x + n + i), candidate = load(x + 2 * n + i);
    const Vec to_candidate = g * (1.0f - update) * (1.0f - candidate * candidate);
    const Vec to_reset = to_candidate * load(h + 2 * n + i) * reset * (1.0f - reset);
    const Vec to_update = g * (load(d + i) - candidate) * update * (1.0f - update);
    store(x + i, to_reset);
    store(to_h + i, to_reset);
    store(x + n + i, to_update);
    store(to_h + n + i, to_update);
    store(x + 2 * n + i, to_candidate);
    store(to_h + 2 * n + i, to_candidate * reset);
    store(to_d + i, g * update);
  }
}

// the gradients of one product's weight and bias from those of its results `to_gates`, for rows x [n_rows, size]
inline void add_gradients(const ScanSizes& s, std::int64_t n_rows, const float* to_gates, const float* x,
                          std::int64_t size, std::int64_t row, float* weight, float* bias) {
  const std::int64_t width = 3 * s.state_pad;
  multiply(width, size, n_rows, transposed(to_gates, s.gate_row), plain(x, row), weight, row, From::c);
  add_rows(bias, to_gates, n_rows, s.gate_row, width);
}

constexpr float kLowestLogStd = -5.0f, kHighestLogStd = 2.0f;
struct Gauss {
  Vec mean, log_std;
};

// videos of a tile, the longest first, that have a snippet t
inline std::int64_t running(const std::int64_t* lengths, const ScanTile& tile, std::int64_t t) {
  std::int64_t count = tile.count;
  while (count > 0 && lengths[tile.videos[count - 1]] <= t) --count;
  return count;
}

// The reverse scan computes the gates of a chunk of steps at once. The room for its rows must grow with the tile, since
// it is reserved for the largest: 7 videos of 13 steps are 91 rows, 6 of 16 are 96.
constexpr std::int64_t kChunkRows = 96;
inline std::int64_t chunk_steps(std::int64_t tile) { return kChunkRows > tile ? kChunkRows / tile : 1; }
inline std::int64_t chunk_rows(std::int64_t tile) { return kChunkRows > tile ? kChunkRows : tile; }

}  // namespace
