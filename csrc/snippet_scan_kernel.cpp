// One tile of videos through the snippet scan and back, compiled once an instruction set.
//
// Where a change-point makes the next state d0, the GRU's step is left out; and what d0 gives the gates and the heads is
// known. States lie one after another without those that are d0: behind row 0, which is d0, first those whose step goes
// on, then those whose step does not, which only the heads read.
#include "scan_gru.hpp"
#include "snippet_scan.hpp"

namespace {

using ahlm::SnippetJob;
using ahlm::SnippetSums;

AHLM_INLINE Gauss head(const float* part, std::int64_t pad, const float* stream, std::int64_t z, std::int64_t i,
                       std::int64_t n, Vec& raw_log_std) {
  raw_log_std = load(part + pad + i) + load(stream + z + i, n);
  return {load(part + i) + load(stream + i, n), clamp(raw_log_std, kLowestLogStd, kHighestLogStd)};
}

struct Forward {
  float *v, *d, *next, *from_input, *from_state, *heads;  // row 0 of v is for those that do not go on
  std::int64_t *own, *going;  // a video's row in d, from_state and heads; the videos that go on
};
std::int64_t forward_layout(const SnippetJob& job, std::int64_t tile, float* block, Forward& f) {
  const ScanSizes& s = job.sizes;
  Arena arena{block, 0};
  f.v = take(arena, (1 + tile) * s.latent_row);
  f.d = take(arena, (1 + tile) * s.state_row);
  f.next = take(arena, tile * s.state_row);
  f.from_input = take(arena, tile * s.gate_row);
  f.from_state = take(arena, (1 + tile) * s.gate_row);
  f.heads = take(arena, (1 + tile) * job.weights.head_row);
  f.own = reinterpret_cast<std::int64_t*>(take(arena, 2 * tile));
  f.going = reinterpret_cast<std::int64_t*>(take(arena, 2 * tile));
  return arena.used;
}
std::int64_t forward_floats(const SnippetJob& job, std::int64_t tile) {
  Forward f;
  return forward_layout(job, tile, nullptr, f);
}

// whether the state of the tile's video r at t + 1 comes from the GRU
bool goes_on(const SnippetJob& job, const ScanTile& tile, std::int64_t r, std::int64_t t) {
  return t + 1 < job.input.lengths[tile.videos[r]] && !job.input.change_points[tile.videos[r] * job.sizes.snippets + t];
}

void all_heads(const SnippetJob& job, std::int64_t n_rows, const float* d, float* heads) {
  const ScanSizes& s = job.sizes;
  multiply(n_rows, 4 * s.latent_pad, s.state, dense(d, s.state_row), packed(job.weights.heads, s.state), heads,
           job.weights.head_row, From::zero);
}

void step(const SnippetJob& job, const float* heads, std::int64_t out, float* v) {
  const std::int64_t z = job.sizes.latent, pad = job.sizes.latent_pad;
  Sum kl{};
  over(z, [&](std::int64_t i, std::int64_t n, int part) {
    Vec raw;
    const Gauss p = head(heads, pad, job.input.prior_stream + out * 2 * z, z, i, n, raw);
    const Gauss q = head(heads + 2 * pad, pad, job.input.posterior_stream + out * 2 * z, z, i, n, raw);
    const Vec distance = q.mean - p.mean;
    const Vec terms = excess(2.0f * (q.log_std - p.log_std)) + distance * distance * exp(-2.0f * p.log_std);
    kl.parts[part] += first(terms, n);
    const Vec drawn = q.mean + exp(q.log_std) * load(job.input.noise + out * z + i, n);
    store(v + i, drawn, n);
    store(job.output.latent + out * z + i, drawn, n);
  });
  job.output.kl[out] = 0.5f * total(kl);
}

void forward(const SnippetJob& job, const ScanTile& tile, float* scratch) {
  const ScanSizes& s = job.sizes;
  Forward f;
  clear(scratch, forward_layout(job, tile.count, scratch, f));
  for (std::int64_t r = 0; r < tile.count; ++r) {
    const std::int64_t length = job.input.lengths[tile.videos[r]], n = s.snippets - length;
    const std::int64_t from = tile.videos[r] * s.snippets + length;
    clear(job.output.kl + from, n);
    clear(job.output.latent + from * s.latent, n * s.latent);
    clear(job.output.state + from * s.state, n * s.state);
  }
  copy(f.d, job.weights.initial_state, s.state_row);
  gru_products(s, job.weights.gru, 0, f.v, 1, f.d, f.from_input, f.from_state);
  all_heads(job, 1, f.d, f.heads);
  std::int64_t n_states = 0, n_going_states = 0;
  for (std::int64_t t = 0; t < s.snippets; ++t) {
    const std::int64_t n_rows = running(job.input.lengths, tile, t);
    if (n_rows == 0) return;
    all_heads(job, n_states, f.d + s.state_row, f.heads + job.weights.head_row);
    std::int64_t n_going = 0;
    for (std::int64_t r = 0; r < n_rows; ++r) {
      const std::int64_t out = tile.videos[r] * s.snippets + t;
      const bool goes = goes_on(job, tile, r, t);
      if (goes) f.going[n_going++] = r;
      step(job, f.heads + f.own[r] * job.weights.head_row, out, f.v + (goes ? n_going : 0) * s.latent_row);
      copy(job.output.state + out * s.state, f.d + f.own[r] * s.state_row, s.state);
    }
    gru_products(s, job.weights.gru, n_going, f.v + s.latent_row, n_going_states, f.d + s.state_row, f.from_input,
                 f.from_state + s.gate_row);
    for (std::int64_t k = 0; k < n_going; ++k) {
      const std::int64_t own = f.own[f.going[k]];
      gru_row<false>(s.state_pad, f.from_input + k * s.gate_row, f.from_state + own * s.gate_row,
                     f.d + own * s.state_row, f.next + k * s.state_row);
    }
    for (std::int64_t r = 0; r < tile.count; ++r) f.own[r] = 0;
    n_states = 0;
    const auto take_those = [&](bool that_go_on) {
      for (std::int64_t k = 0; k < n_going; ++k) {
        if (goes_on(job, tile, f.going[k], t + 1) != that_go_on) continue;
        f.own[f.going[k]] = ++n_states;
        copy(f.d + n_states * s.state_row, f.next + k * s.state_row, s.state_row);
      }
    };
    take_those(true);
    n_going_states = n_states;
    take_those(false);
  }
}

struct Backward {
  float *v, *d, *from_input, *from_state, *heads, *to_heads;  // a chunk of steps
  float *gv, *gd;                                             // row 0 of gv is zero, for those that do not go on
  float *to_states, *to_product, *unused_state;               // of one step
  float *to_start_gates, *to_start_heads;                     // sums of the gradients of d0's products
  // of a chunk's rows: the row in d, from_state and heads; the row in v and from_input, or -1
  std::int64_t *own, *going;
};
std::int64_t backward_layout(const SnippetJob& job, std::int64_t tile, float* block, Backward& b) {
  const ScanSizes& s = job.sizes;
  const std::int64_t rows = chunk_rows(tile);
  Arena arena{block, 0};
  b.gv = take(arena, (1 + tile) * s.latent_row);
  b.gd = take(arena, tile * s.state_row);
  b.to_states = take(arena, tile * s.state_row);
  b.to_product = take(arena, s.gate_row);
  b.unused_state = take(arena, s.state_row);
  b.to_start_gates = take(arena, s.gate_row);
  b.to_start_heads = take(arena, job.weights.head_row);
  b.v = take(arena, rows * s.latent_row);
  b.d = take(arena, (1 + rows) * s.state_row);
  b.from_input = take(arena, rows * s.gate_row);
  b.from_state = take(arena, (1 + rows) * s.gate_row);
  b.heads = take(arena, (1 + rows) * job.weights.head_row);
  b.to_heads = take(arena, (1 + rows) * job.weights.head_row);
  b.own = reinterpret_cast<std::int64_t*>(take(arena, 2 * rows));
  b.going = reinterpret_cast<std::int64_t*>(take(arena, 2 * rows));
  return arena.used;
}
std::int64_t backward_floats(const SnippetJob& job, std::int64_t tile) {
  Backward b;
  return backward_layout(job, tile, nullptr, b);
}

AHLM_INLINE Vec through_clamp(Vec raw, Vec gradient) { return inside(raw, kLowestLogStd, kHighestLogStd, gradient); }

void step_backward(const SnippetJob& job, const float* heads, const float* gv, std::int64_t out, float* to_heads) {
  const std::int64_t z = job.sizes.latent, pad = job.sizes.latent_pad;
  const Vec weight = all(job.gradients.kl[out]);
  float* const to_prior = job.found.prior_stream + out * 2 * z;
  float* const to_posterior = job.found.posterior_stream + out * 2 * z;
  over(z, [&](std::int64_t i, std::int64_t n, int) {
    Vec raw_p, raw_q;
    const Gauss p = head(heads, pad, job.input.prior_stream + out * 2 * z, z, i, n, raw_p);
    const Gauss q = head(heads + 2 * pad, pad, job.input.posterior_stream + out * 2 * z, z, i, n, raw_q);
    const Vec distance = q.mean - p.mean, slope = distance * exp(-2.0f * p.log_std);
    const Vec ratio = expm1(2.0f * (q.log_std - p.log_std));
    const Vec drawn = load(gv + i) + load(job.gradients.latent + out * z + i, n);
    const Vec spread = drawn * exp(q.log_std) * load(job.input.noise + out * z + i, n);
    const Gauss gp{-weight * slope, through_clamp(raw_p, -weight * (ratio + distance * slope))};
    const Gauss gq{weight * slope + drawn, through_clamp(raw_q, weight * ratio + spread)};
    store(to_prior + i, gp.mean, n);
    store(to_prior + z + i, gp.log_std, n);
    store(to_posterior + i, gq.mean, n);
    store(to_posterior + z + i, gq.log_std, n);
    store(to_heads + i, first(gp.mean, n));
    store(to_heads + pad + i, first(gp.log_std, n));
    store(to_heads + 2 * pad + i, first(gq.mean, n));
    store(to_heads + 3 * pad + i, first(gq.log_std, n));
  });
}

void backward(const SnippetJob& job, const ScanTile& tile, const SnippetSums& sums, float* scratch) {
  const ScanSizes& s = job.sizes;
  const auto& w = job.weights;
  const std::int64_t head_width = 4 * s.latent_pad, gates = 3 * s.state_pad;
  Backward b;
  clear(scratch, backward_layout(job, tile.count, scratch, b));
  const auto add_heads = [&](std::int64_t n_rows, std::int64_t row) {
    multiply(head_width, s.state, n_rows, transposed(b.to_heads + row * w.head_row, w.head_row),
             plain(b.d + row * s.state_row, s.state_row), sums.heads, s.state_row, From::c);
  };
  for (std::int64_t r = 0; r < tile.count; ++r) {
    const std::int64_t length = job.input.lengths[tile.videos[r]], z2 = 2 * s.latent;
    const std::int64_t from = (tile.videos[r] * s.snippets + length) * z2, n = (s.snippets - length) * z2;
    clear(job.found.prior_stream + from, n);
    clear(job.found.posterior_stream + from, n);
  }
  copy(b.d, w.initial_state, s.state_row);
  gru_products(s, w.gru, 0, b.v, 1, b.d, b.from_input, b.from_state);
  all_heads(job, 1, b.d, b.heads);
  const std::int64_t last = chunk_rows(tile.count);  // states that only heads read lie before it, the latest first
  std::int64_t end = job.input.lengths[tile.videos[0]];
  while (end > 0) {
    const std::int64_t steps = chunk_steps(tile.count), begin = end > steps ? end - steps : 0;
    std::int64_t n_rows = 0, n_going = 0, n_states = 0, n_ending = 0;
    for (std::int64_t t = begin; t < end; ++t) {
      const std::int64_t n = running(job.input.lengths, tile, t);
      for (std::int64_t r = 0; r < n; ++r, ++n_rows) {
        const std::int64_t out = tile.videos[r] * s.snippets + t;
        const bool goes = goes_on(job, tile, r, t), starts = t == 0 || job.input.change_points[out - 1];
        b.going[n_rows] = goes ? n_going++ : -1;
        b.own[n_rows] = starts ? 0 : goes ? ++n_states : last - n_ending++;
        if (goes) copy(b.v + b.going[n_rows] * s.latent_row, job.output.latent + out * s.latent, s.latent);
        if (!starts) copy(b.d + b.own[n_rows] * s.state_row, job.output.state + out * s.state, s.state);
      }
    }
    const std::int64_t first_ending = last - n_ending + 1;
    gru_products(s, w.gru, n_going, b.v, n_states, b.d + s.state_row, b.from_input, b.from_state + s.gate_row);
    for (std::int64_t row = 0; row < n_rows; ++row)
      if (b.going[row] >= 0)
        gru_row<true>(s.state_pad, b.from_input + b.going[row] * s.gate_row, b.from_state + b.own[row] * s.gate_row,
                      b.d + b.own[row] * s.state_row, b.unused_state);
    all_heads(job, n_states, b.d + s.state_row, b.heads + w.head_row);
    all_heads(job, n_ending, b.d + first_ending * s.state_row, b.heads + first_ending * w.head_row);
    std::int64_t row = n_rows, going_begin = n_going, state_begin = n_states + 1, ending_begin = first_ending;
    for (std::int64_t t = end - 1; t >= begin; --t) {
      const std::int64_t n = running(job.input.lengths, tile, t);
      row -= n;
      std::int64_t going_here = 0, states_here = 0, ending_here = 0;
      for (std::int64_t r = row; r < row + n; ++r) {
        going_here += b.going[r] >= 0;
        states_here += b.going[r] >= 0 && b.own[r] > 0;
        ending_here += b.going[r] < 0 && b.own[r] > 0;
      }
      going_begin -= going_here;
      state_begin -= states_here;
      for (std::int64_t r = 0; r < n; ++r) {
        const std::int64_t own = b.own[row + r], going = b.going[row + r];
        float* const gd = b.gd + r * s.state_row;
        if (going < 0) {  // what comes next, if anything, is d0
          add_rows(sums.initial_state, gd, 1, s.state_row, s.state_row);
          clear(gd, s.state_row);
          continue;
        }
        float* const h = b.from_state + own * s.gate_row;
        gru_row_backward(s.state_pad, b.from_input + going * s.gate_row, h, b.d + own * s.state_row, gd,
                         own ? h : b.to_product, own ? b.to_states + (own - state_begin) * s.state_row : gd);
        if (!own) add_rows(b.to_start_gates, b.to_product, 1, s.gate_row, gates);
      }
      multiply(going_here, s.latent, gates, dense(b.from_input + going_begin * s.gate_row, s.gate_row),
               packed(w.gru.input_back, gates), b.gv + s.latent_row, s.latent_row, From::zero);
      for (std::int64_t r = 0; r < n; ++r) {
        const std::int64_t own = b.own[row + r], going = b.going[row + r];
        step_backward(job, b.heads + own * w.head_row, b.gv + (going < 0 ? 0 : going - going_begin + 1) * s.latent_row,
                      tile.videos[r] * s.snippets + t, b.to_heads + own * w.head_row);
        if (!own) add_rows(b.to_start_heads, b.to_heads, 1, w.head_row, head_width);
      }
      float* const to_ending = b.to_states + states_here * s.state_row;
      multiply(states_here, s.state, gates, dense(b.from_state + state_begin * s.gate_row, s.gate_row),
               packed(w.gru.state_back, gates), b.to_states, s.state_row, From::c);
      multiply(states_here, s.state, head_width, dense(b.to_heads + state_begin * w.head_row, w.head_row),
               packed(w.heads_back, head_width), b.to_states, s.state_row, From::c);
      multiply(ending_here, s.state, head_width, dense(b.to_heads + ending_begin * w.head_row, w.head_row),
               packed(w.heads_back, head_width), to_ending, s.state_row, From::zero);
      for (std::int64_t r = 0; r < n; ++r) {
        const std::int64_t own = b.own[row + r];
        const float* const given = job.gradients.state + (tile.videos[r] * s.snippets + t) * s.state;
        float* const gd = b.gd + r * s.state_row;
        const float* const found = !own                    ? gd
                                   : b.going[row + r] >= 0 ? b.to_states + (own - state_begin) * s.state_row
                                                           : to_ending + (own - ending_begin) * s.state_row;
        over(s.state, [&](std::int64_t i, std::int64_t m, int) { store(gd + i, load(found + i) + load(given + i, m)); });
      }
      ending_begin += ending_here;
    }
    add_gradients(s, n_going, b.from_input, b.v, s.latent, s.latent_row, sums.gru.input, sums.gru.input_bias);
    add_gradients(s, n_states, b.from_state + s.gate_row, b.d + s.state_row, s.state, s.state_row, sums.gru.state,
                  sums.gru.state_bias);
    add_heads(n_states, 1);
    add_heads(n_ending, first_ending);
    end = begin;
  }
  // d0, at row 0, passes its gradient through the weights once
  add_gradients(s, 1, b.to_start_gates, b.d, s.state, s.state_row, sums.gru.state, sums.gru.state_bias);
  multiply(1, s.state, gates, dense(b.to_start_gates, s.gate_row), packed(w.gru.state_back, gates), sums.initial_state,
           s.state_row, From::c);
  copy(b.to_heads, b.to_start_heads, w.head_row);
  add_heads(1, 0);
  multiply(1, s.state, head_width, dense(b.to_heads, w.head_row), packed(w.heads_back, head_width), sums.initial_state,
           s.state_row, From::c);
  add_rows(sums.initial_state, b.gd, tile.count, s.state_row, s.state_row);
}

}  // namespace

namespace ahlm {
#define AHLM_JOIN(a, b) a##b
#define AHLM_NAME(level) AHLM_JOIN(snippet_kernel_, level)
extern const SnippetKernel AHLM_NAME(AHLM_LEVEL);
const SnippetKernel AHLM_NAME(AHLM_LEVEL){kPanel, forward_floats, forward, backward_floats, backward};
}  // namespace ahlm
