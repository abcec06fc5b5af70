// One tile of videos through the snippet scan and back, compiled once an instruction set.
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
  float *v, *d, *from_input, *from_state, *heads;
};
std::int64_t forward_layout(const SnippetJob& job, std::int64_t tile, float* block, Forward& f) {
  const ScanSizes& s = job.sizes;
  Arena arena{block, 0};
  f.v = take(arena, tile * s.latent_row);
  f.d = take(arena, tile * s.state_row);
  f.from_input = take(arena, tile * s.gate_row);
  f.from_state = take(arena, tile * s.gate_row);
  f.heads = take(arena, tile * job.weights.head_row);
  return arena.used;
}
std::int64_t forward_floats(const SnippetJob& job, std::int64_t tile) {
  Forward f;
  return forward_layout(job, tile, nullptr, f);
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
    copy(f.d + r * s.state_row, job.weights.initial_state, s.state_row);
  }
  for (std::int64_t t = 0; t < s.snippets; ++t) {
    const std::int64_t n_rows = running(job.input.lengths, tile, t), n_next = running(job.input.lengths, tile, t + 1);
    multiply(n_rows, 4 * s.latent_pad, s.state, dense(f.d, s.state_row), packed(job.weights.heads, s.state), f.heads,
             job.weights.head_row, From::zero);
    for (std::int64_t r = 0; r < n_rows; ++r) {
      const std::int64_t out = tile.videos[r] * s.snippets + t;
      step(job, f.heads + r * job.weights.head_row, out, f.v + r * s.latent_row);
      copy(job.output.state + out * s.state, f.d + r * s.state_row, s.state);
    }
    if (n_next == 0) return;
    gru_products(s, job.weights.gru, n_next, f.v, n_next, f.d, f.from_input, f.from_state);
    for (std::int64_t r = 0; r < n_next; ++r) {
      float* const d = f.d + r * s.state_row;
      if (job.input.change_points[tile.videos[r] * s.snippets + t])
        copy(d, job.weights.initial_state, s.state_row);
      else
        gru_row<false>(s.state_pad, f.from_input + r * s.gate_row, f.from_state + r * s.gate_row, d, d);
    }
  }
}

struct Backward {
  float *v, *d, *from_input, *from_state, *heads, *to_heads;  // a chunk of steps
  float *gv, *gd, *next_gd, *unused_state;                    // carried, a row a video
};
std::int64_t backward_layout(const SnippetJob& job, std::int64_t tile, float* block, Backward& b) {
  const ScanSizes& s = job.sizes;
  const std::int64_t rows = chunk_rows(tile);
  Arena arena{block, 0};
  b.gv = take(arena, tile * s.latent_row);
  b.gd = take(arena, tile * s.state_row);
  b.next_gd = take(arena, tile * s.state_row);
  b.unused_state = take(arena, s.state_row);
  b.v = take(arena, rows * s.latent_row);
  b.d = take(arena, rows * s.state_row);
  b.from_input = take(arena, rows * s.gate_row);
  b.from_state = take(arena, rows * s.gate_row);
  b.heads = take(arena, rows * job.weights.head_row);
  b.to_heads = take(arena, rows * job.weights.head_row);
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
  for (std::int64_t r = 0; r < tile.count; ++r) {
    const std::int64_t length = job.input.lengths[tile.videos[r]], z2 = 2 * s.latent;
    const std::int64_t from = (tile.videos[r] * s.snippets + length) * z2, n = (s.snippets - length) * z2;
    clear(job.found.prior_stream + from, n);
    clear(job.found.posterior_stream + from, n);
  }
  std::int64_t end = job.input.lengths[tile.videos[0]];
  while (end > 0) {
    const std::int64_t steps = chunk_steps(tile.count), begin = end > steps ? end - steps : 0;
    std::int64_t n_rows = 0;
    for (std::int64_t t = begin; t < end; ++t) {
      const std::int64_t n = running(job.input.lengths, tile, t);
      for (std::int64_t r = 0; r < n; ++r, ++n_rows) {
        const std::int64_t out = tile.videos[r] * s.snippets + t;
        copy(b.v + n_rows * s.latent_row, job.output.latent + out * s.latent, s.latent);
        copy(b.d + n_rows * s.state_row, job.output.state + out * s.state, s.state);
      }
    }
    gru_products(s, w.gru, n_rows, b.v, n_rows, b.d, b.from_input, b.from_state);
    for (std::int64_t row = 0; row < n_rows; ++row)
      gru_row<true>(s.state_pad, b.from_input + row * s.gate_row, b.from_state + row * s.gate_row,
                    b.d + row * s.state_row, b.unused_state);
    multiply(n_rows, head_width, s.state, dense(b.d, s.state_row), packed(w.heads, s.state), b.heads, w.head_row,
             From::zero);
    std::int64_t row = n_rows;
    for (std::int64_t t = end - 1; t >= begin; --t) {
      const std::int64_t n = running(job.input.lengths, tile, t);
      row -= n;
      for (std::int64_t r = 0; r < n; ++r) {
        float* const gd = b.gd + r * s.state_row;
        if (job.input.change_points[tile.videos[r] * s.snippets + t]) {
          add_rows(sums.initial_state, gd, 1, s.state_row, s.state_row);
          clear(gd, s.state_row);
        }
        float* const h = b.from_state + (row + r) * s.gate_row;
        gru_row_backward(s.state_pad, b.from_input + (row + r) * s.gate_row, h, b.d + (row + r) * s.state_row, gd, h,
                         b.next_gd + r * s.state_row);
      }
      float* const swapped = b.gd;
      b.gd = b.next_gd;
      b.next_gd = swapped;
      multiply(n, s.latent, gates, dense(b.from_input + row * s.gate_row, s.gate_row), packed(w.gru.input_back, gates),
               b.gv, s.latent_row, From::zero);
      float* const to_heads = b.to_heads + row * w.head_row;
      for (std::int64_t r = 0; r < n; ++r)
        step_backward(job, b.heads + (row + r) * w.head_row, b.gv + r * s.latent_row, tile.videos[r] * s.snippets + t,
                      to_heads + r * w.head_row);
      multiply(n, s.state, gates, dense(b.from_state + row * s.gate_row, s.gate_row), packed(w.gru.state_back, gates),
               b.gd, s.state_row, From::c);
      multiply(n, s.state, head_width, dense(to_heads, w.head_row), packed(w.heads_back, head_width), b.gd, s.state_row,
               From::c);
      for (std::int64_t r = 0; r < n; ++r) {
        const float* const given = job.gradients.state + (tile.videos[r] * s.snippets + t) * s.state;
        float* const gd = b.gd + r * s.state_row;
        over(s.state, [&](std::int64_t i, std::int64_t m, int) { store(gd + i, load(gd + i) + load(given + i, m)); });
      }
    }
    add_gradients(s, n_rows, b.from_input, b.v, s.latent, s.latent_row, sums.gru.input, sums.gru.input_bias);
    add_gradients(s, n_rows, b.from_state, b.d, s.state, s.state_row, sums.gru.state, sums.gru.state_bias);
    multiply(head_width, s.state, n_rows, transposed(b.to_heads, w.head_row), plain(b.d, s.state_row), sums.heads,
             s.state_row, From::c);
    end = begin;
  }
  add_rows(sums.initial_state, b.gd, tile.count, s.state_row, s.state_row);
}

}  // namespace

namespace ahlm {
#define AHLM_JOIN(a, b) a##b
#define AHLM_NAME(level) AHLM_JOIN(snippet_kernel_, level)
extern const SnippetKernel AHLM_NAME(AHLM_LEVEL);
const SnippetKernel AHLM_NAME(AHLM_LEVEL){kPanel, forward_floats, forward, backward_floats, backward};
}  // namespace ahlm
