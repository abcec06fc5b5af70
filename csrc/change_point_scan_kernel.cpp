// One tile of videos through the change-point scan and back, compiled once an instruction set.
//
// Beside the reference: 1 rows of a tile share each weight that is loaded; 2 the precision of the belief is kept instead
// of taken from its deviation again; 3 P d of the static prior is P d' of the step before, and so are their gradients; 4
// the reverse scan computes the gates of a chunk of steps at once, and adds a chunk to the weights' gradients as one
// matrix product; 5 the state's product with the gates' weights is left out where the state is d0, as it is at the first
// snippet and, with `reset`, after a change-point: states lie one after another without these, behind d0 and its product,
// which are row 0 for them all.
#include "change_point_scan.hpp"
#include "scan_gru.hpp"

namespace {

using ahlm::ChangePointJob;
using ahlm::ChangePointSums;
using ahlm::ChangePrior;


// means and log deviations of a head whose parts are in padded buffers, in unpadded streams, or in both
AHLM_INLINE Gauss head(const float* part, std::int64_t pad, const float* stream, std::int64_t z, std::int64_t i,
                       std::int64_t n, Gauss& pre) {
  pre = {Vec{}, Vec{}};
  if (part) pre = {load(part + i), load(part + pad + i)};
  if (stream) {
    pre.mean += load(stream + i, n);
    pre.log_std += load(stream + z + i, n);
  }
  return {pre.mean, clamp(pre.log_std, kLowestLogStd, kHighestLogStd)};
}
AHLM_INLINE Vec kl_terms(const Gauss& q, const Gauss& p, Vec precision_p) {
  const Vec distance = q.mean - p.mean;
  return excess(2.0f * (q.log_std - p.log_std)) + distance * distance * precision_p;
}

bool uses_state(const ChangePointJob& job) {
  return !job.rules.held || job.rules.change_prior != ChangePrior::constant || job.rules.transition;
}

bool uses_prior_head(const ChangePointJob& job) {
  return !job.rules.held || job.rules.change_prior != ChangePrior::constant;
}

// where the parts of a step come from; null where the reading has none
struct Parts {
  const float *start;           // column t + 1
  const float *posterior, *q;   // e under `transition`: stream and Q d'
  const float *prior_static, *p_static;  // the static prior under `prior`
  const float *prior_change, *p_change;  // the change prior; p_change alone may be the padded bias
  const float *bias;            // of the change prior under `state`
};
Parts parts_of(const ChangePointJob& job, std::int64_t row, const float* heads, const float* p_of_d) {
  const std::int64_t pad2 = 2 * job.sizes.latent_pad, z2 = 2 * job.sizes.latent;
  Parts parts{};
  const auto at = [&](const float* stream, std::int64_t r) { return stream ? stream + r * z2 : nullptr; };
  parts.start = at(job.input.start, row + 1);
  if (job.rules.transition) {
    parts.posterior = at(job.input.posterior, row + 1);
    parts.q = heads + (job.weights.head_segments == 4 ? pad2 : 0);
  }
  if (!job.rules.held) {
    parts.prior_static = at(job.input.prior, row);
    parts.p_static = p_of_d;
  }
  if (job.rules.change_prior == ChangePrior::full) parts.prior_change = at(job.input.prior, row);
  if (job.rules.change_prior == ChangePrior::constant) {
    parts.p_change = job.weights.prior_bias;
  } else {
    parts.p_change = heads;
    if (job.rules.change_prior == ChangePrior::state) parts.bias = job.weights.prior_bias;
  }
  return parts;
}
AHLM_INLINE Gauss change_prior(const Parts& parts, std::int64_t pad, std::int64_t z, std::int64_t i, std::int64_t n,
                               Gauss& pre) {
  head(parts.p_change, pad, parts.prior_change, z, i, n, pre);
  if (parts.bias) {
    pre.mean += load(parts.bias + i);
    pre.log_std += load(parts.bias + pad + i);
  }
  return {pre.mean, clamp(pre.log_std, kLowestLogStd, kHighestLogStd)};
}

// ---- forward

struct Row {  // state of one video
  float *mean, *log_std, *precision, *q_mean, *q_log_std, *q_precision;
};
struct Forward {
  float *v, *d, *next, *from_input, *from_state, *heads, *p_of_d, *rows, *beta;
  std::int64_t *waiting, *own;  // a video's row in d and from_state
};
std::int64_t forward_layout(const ChangePointJob& job, std::int64_t tile, float* block, Forward& f) {
  const ScanSizes& s = job.sizes;
  Arena arena{block, 0};
  f.v = take(arena, tile * s.latent_row);
  f.d = take(arena, (1 + tile) * s.state_row);
  f.next = take(arena, tile * s.state_row);
  f.from_input = take(arena, tile * s.gate_row);
  f.from_state = take(arena, (1 + tile) * s.gate_row);
  f.heads = take(arena, tile * job.weights.head_row);
  f.p_of_d = take(arena, tile * 2 * s.latent_pad);
  f.rows = take(arena, tile * 6 * s.latent_pad);
  f.beta = take(arena, tile);
  f.waiting = reinterpret_cast<std::int64_t*>(take(arena, 2 * tile));
  f.own = reinterpret_cast<std::int64_t*>(take(arena, 2 * tile));
  return arena.used;
}
std::int64_t forward_floats(const ChangePointJob& job, std::int64_t tile) {
  Forward f;
  return forward_layout(job, tile, nullptr, f);
}
Row row_of(const Forward& f, const ScanSizes& s, std::int64_t r) {
  float* const base = f.rows + r * 6 * s.latent_pad;
  const std::int64_t pad = s.latent_pad;
  return {base, base + pad, base + 2 * pad, base + 3 * pad, base + 4 * pad, base + 5 * pad};
}

// v ~ belief, and both into the outputs at `out`, a row of (B, T)
AHLM_INLINE void draw(const ChangePointJob& job, const Row& row, std::int64_t out, float* v) {
  const std::int64_t z = job.sizes.latent;
  const float* const noise = job.input.noise ? job.input.noise + out * z : nullptr;
  over(z, [&](std::int64_t i, std::int64_t n, int) {
    const Vec mean = load(row.mean + i), log_std = load(row.log_std + i);
    const Vec drawn = noise ? mean + exp(log_std) * load(noise + i, n) : mean;
    store(v + i, drawn, n);
    store(job.output.latent + out * z + i, drawn, n);
    store(job.output.belief_mean + out * z + i, mean, n);
    store(job.output.belief_log_std + out * z + i, log_std, n);
  });
}

void first_column(const ChangePointJob& job, const Forward& f, std::int64_t r, std::int64_t out) {
  const ScanSizes& s = job.sizes;
  const Row row = row_of(f, s, r);
  Sum charged{};
  over(s.latent, [&](std::int64_t i, std::int64_t n, int part) {
    Gauss pre;
    const Gauss belief = head(nullptr, 0, job.input.start + out * 2 * s.latent, s.latent, i, n, pre);
    charged.parts[part] += first(kl_terms(belief, {Vec{}, Vec{}}, all(1.0f)), n);
    store(row.mean + i, belief.mean);
    store(row.log_std + i, belief.log_std);
    store(row.precision + i, exp(-2.0f * belief.log_std));
  });
  draw(job, row, out, f.v + r * s.latent_row);
  job.output.change_points[out] = false;
  job.output.kl_static[out] = job.output.kl_change[out] = 0.0f;
  job.output.kl_charged[out] = 0.5f * total(charged);
  copy(job.output.state + out * s.state, job.weights.initial_state, s.state);
  copy(f.p_of_d + r * 2 * s.latent_pad, job.weights.prior_of_start, 2 * s.latent_pad);
  f.beta[r] = job.rules.beta0;
  f.waiting[r] = f.own[r] = 0;
}

// eqs. 4-8 of one video at column `out` + 1; returns whether it changed
bool step(const ChangePointJob& job, const Forward& f, std::int64_t r, std::int64_t out) {
  const ScanSizes& s = job.sizes;
  const auto& rules = job.rules;
  const Row row = row_of(f, s, r);
  const Parts parts = parts_of(job, out, f.heads + r * job.weights.head_row, f.p_of_d + r * 2 * s.latent_pad);
  const std::int64_t z = s.latent, pad = s.latent_pad;
  Sum to_static{}, to_change{};
  Gauss pre;
  over(z, [&](std::int64_t i, std::int64_t n, int part) {
    const Gauss belief{load(row.mean + i), load(row.log_std + i)};
    const Vec belief_precision = load(row.precision + i);
    const Gauss e = parts.q ? head(parts.q, pad, parts.posterior, z, i, n, pre)
                            : head(nullptr, 0, parts.start, z, i, n, pre);
    const Vec from_belief = rules.belief_weight * belief_precision;
    const Vec from_evidence = rules.evidence_weight * exp(-2.0f * e.log_std);
    const Vec precision = from_belief + from_evidence;
    const Gauss q{(from_belief * belief.mean + from_evidence * e.mean) / precision, -0.5f * log(precision)};
    const Gauss p = parts.p_static ? head(parts.p_static, pad, parts.prior_static, z, i, n, pre) : belief;
    const Vec p_precision = parts.p_static ? exp(-2.0f * p.log_std) : belief_precision;
    to_static.parts[part] += first(kl_terms(q, p, p_precision), n);
    const Gauss c = change_prior(parts, pad, z, i, n, pre);
    to_change.parts[part] += first(kl_terms(q, c, exp(-2.0f * c.log_std)), n);
    store(row.q_mean + i, q.mean);
    store(row.q_log_std + i, q.log_std);
    store(row.q_precision + i, precision);
  });
  const float kl_static = 0.5f * total(to_static), kl_change = 0.5f * total(to_change);
  const bool tested = f.waiting[r] == 0;
  bool changed = tested && kl_static > f.beta[r] * kl_change;
  if (tested) {
    const float beta = f.beta[r] + (changed ? rules.alpha : -rules.alpha_down);
    f.beta[r] = beta < rules.beta_low ? rules.beta_low : beta > rules.beta_high ? rules.beta_high : beta;
  }
  if (job.input.forced_changes) changed = job.input.forced_changes[out + 1];
  f.waiting[r] = changed ? rules.refractory : f.waiting[r] > 0 ? f.waiting[r] - 1 : 0;

  float kl_charged = kl_static;
  if (changed) {
    const bool from_stream = rules.reset || !parts.q;
    Sum charged{};
    over(z, [&](std::int64_t i, std::int64_t n, int part) {
      const Gauss fresh = from_stream ? head(nullptr, 0, parts.start, z, i, n, pre)
                                      : head(parts.q, pad, parts.posterior, z, i, n, pre);
      const Gauss c = change_prior(parts, pad, z, i, n, pre);
      charged.parts[part] += first(kl_terms(fresh, c, exp(-2.0f * c.log_std)), n);
      store(row.mean + i, fresh.mean);
      store(row.log_std + i, fresh.log_std);
      store(row.precision + i, exp(-2.0f * fresh.log_std));
    });
    kl_charged = 0.5f * total(charged);
  } else {
    copy(row.mean, row.q_mean, 3 * pad);  // mean, deviation, precision lie side by side
  }
  job.output.change_points[out + 1] = changed;
  job.output.kl_static[out + 1] = kl_static;
  job.output.kl_change[out + 1] = kl_change;
  job.output.kl_charged[out + 1] = kl_charged;
  draw(job, row, out + 1, f.v + r * s.latent_row);
  return changed;
}

void clear_padding(const ChangePointJob& job, std::int64_t video) {
  const ScanSizes& s = job.sizes;
  const std::int64_t length = job.input.lengths[video], from = video * s.snippets + length, n = s.snippets - length;
  const auto& o = job.output;
  __builtin_memset(o.change_points + from, 0, static_cast<std::size_t>(n));
  float* const kls[] = {o.kl_static, o.kl_change, o.kl_charged};
  for (float* kl : kls) clear(kl + from, n);
  float* const latents[] = {o.latent, o.belief_mean, o.belief_log_std};
  for (float* latent : latents) clear(latent + from * s.latent, n * s.latent);
  clear(o.state + from * s.state, n * s.state);
}

void forward(const ChangePointJob& job, const ScanTile& tile, ScanHelper* helper, float* scratch) {
  const ScanSizes& s = job.sizes;
  const bool has_state = uses_state(job);
  Forward f;
  clear(scratch, forward_layout(job, tile.count, scratch, f));
  for (std::int64_t r = 0; r < tile.count; ++r) {
    first_column(job, f, r, tile.videos[r] * s.snippets);
    clear_padding(job, tile.videos[r]);
  }
  copy(f.d, job.weights.initial_state, s.state_row);
  if (has_state) gru_products(s, job.weights.gru, 0, f.v, 1, f.d, f.from_input, f.from_state);
  for (std::int64_t t = 0;; ++t) {
    const std::int64_t n_rows = running(job.input.lengths, tile, t + 1);
    if (n_rows == 0) return;
    if (has_state) {
      std::int64_t n_states = 0;
      for (std::int64_t r = 0; r < n_rows; ++r) n_states += f.own[r] > 0;
      gru_products(s, job.weights.gru, n_rows, f.v, n_states, f.d + s.state_row, f.from_input, f.from_state + s.gate_row,
                   helper);
      for (std::int64_t r = 0; r < n_rows; ++r)
        gru_row<false>(s.state_pad, f.from_input + r * s.gate_row, f.from_state + f.own[r] * s.gate_row,
                       f.d + f.own[r] * s.state_row, f.next + r * s.state_row);
      if (job.weights.head_segments)
        multiply_all(helper, {{n_rows, job.weights.head_segments * s.latent_pad, s.state, dense(f.next, s.state_row),
                               packed(job.weights.heads, s.state), f.heads, job.weights.head_row, From::zero, nullptr}});
    }
    std::int64_t n_states = 0;
    for (std::int64_t r = 0; r < n_rows; ++r) {
      const std::int64_t out = tile.videos[r] * s.snippets + t;
      const bool restarts = (step(job, f, r, out) && job.rules.reset) || !has_state;
      f.own[r] = restarts ? 0 : ++n_states;
      float* const d = f.d + f.own[r] * s.state_row;
      if (!restarts) copy(d, f.next + r * s.state_row, s.state_row);
      copy(job.output.state + (out + 1) * s.state, d, s.state);
      if (!job.rules.held)
        copy(f.p_of_d + r * 2 * s.latent_pad,
             restarts ? job.weights.prior_of_start : f.heads + r * job.weights.head_row, 2 * s.latent_pad);
    }
  }
}

// ---- backward

struct Backward {
  float *v, *d, *next, *from_input, *from_state, *heads, *to_heads;  // a chunk of steps
  float *gv, *gd, *mean, *log_std, *to_p_of_d;                       // carried, a row a video
  float *to_states, *to_product;                                     // of one step
  float* to_start_gates;                                             // sum of the gradients of d0's product
  float* p_of_d;                                                     // of a chunk's first step
  std::int64_t* own;                                                 // the rows in d and from_state of a chunk's rows
};
std::int64_t backward_layout(const ChangePointJob& job, std::int64_t tile, float* block, Backward& b) {
  const ScanSizes& s = job.sizes;
  const std::int64_t rows = uses_state(job) ? chunk_rows(tile) : 0;
  Arena arena{block, 0};
  b.gv = take(arena, tile * s.latent_row);
  b.gd = take(arena, tile * s.state_row);
  b.mean = take(arena, tile * s.latent_pad);
  b.log_std = take(arena, tile * s.latent_pad);
  b.to_states = take(arena, tile * s.state_row);
  b.to_product = take(arena, s.gate_row);
  b.to_start_gates = take(arena, s.gate_row);
  b.v = take(arena, rows * s.latent_row);
  b.d = take(arena, (1 + rows) * s.state_row);
  b.next = take(arena, rows * s.state_row);
  b.from_input = take(arena, rows * s.gate_row);
  b.from_state = take(arena, (1 + rows) * s.gate_row);
  b.own = reinterpret_cast<std::int64_t*>(take(arena, 2 * rows));
  b.heads = take(arena, rows * job.weights.head_row);
  b.to_heads = take(arena, rows * job.weights.head_row);
  b.p_of_d = take(arena, job.rules.held ? 0 : tile * 2 * s.latent_pad);
  b.to_p_of_d = take(arena, job.rules.held ? 0 : tile * 2 * s.latent_pad);
  return arena.used;
}
std::int64_t backward_floats(const ChangePointJob& job, std::int64_t tile) {
  Backward b;
  return backward_layout(job, tile, nullptr, b);
}

// gradients of KL(q || p) times `weight`
AHLM_INLINE void kl_backward(const Gauss& q, const Gauss& p, Vec precision_p, Vec weight, Gauss& to_q, Gauss& to_p) {
  const Vec distance = q.mean - p.mean, slope = distance * precision_p;
  const Vec ratio = expm1(2.0f * (q.log_std - p.log_std));
  to_q.mean += weight * slope;
  to_q.log_std += weight * ratio;
  to_p.mean -= weight * slope;
  to_p.log_std -= weight * (ratio + distance * slope);
}
AHLM_INLINE Gauss through_clamp(const Gauss& pre, const Gauss& gradient) {
  return {gradient.mean, inside(pre.log_std, kLowestLogStd, kHighestLogStd, gradient.log_std)};
}

// The gradient of the belief at column `out` from the outputs and from v; `carried` has what later steps gave it.
AHLM_INLINE Gauss into_belief(const ChangePointJob& job, std::int64_t out, const float* gv, const float* mean,
                              const float* log_std, std::int64_t i, std::int64_t n) {
  const std::int64_t at = out * job.sizes.latent + i;
  const Vec drawn = load(gv + i) + load(job.gradients.latent + at, n);
  Gauss gradient{load(mean + i) + load(job.gradients.belief_mean + at, n) + drawn,
                 load(log_std + i) + load(job.gradients.belief_log_std + at, n)};
  if (job.input.noise)
    gradient.log_std += drawn * exp(load(job.output.belief_log_std + at, n)) * load(job.input.noise + at, n);
  return gradient;
}

// One video's step from `out` to `out` + 1, backwards; `row` is its row in the chunk, `p_of_d` P d at `out`.
void step_backward(const ChangePointJob& job, const Backward& b, const ChangePointSums& sums, std::int64_t r,
                   std::int64_t row, std::int64_t out, const float* p_of_d) {
  const ScanSizes& s = job.sizes;
  const auto& rules = job.rules;
  const std::int64_t z = s.latent, pad = s.latent_pad;
  const Parts parts = parts_of(job, out, b.heads + row * job.weights.head_row, p_of_d);
  const bool changed = job.output.change_points[out + 1];
  const float g_static = job.gradients.kl_static[out + 1], g_change = job.gradients.kl_change[out + 1];
  const float g_charged = job.gradients.kl_charged[out + 1];
  const Vec static_weight = all(g_static + (changed ? 0.0f : g_charged)), change_weight = all(g_change);
  const Vec charge_weight = all(g_charged);
  float *const mean = b.mean + r * pad, *const log_std = b.log_std + r * pad;
  float* const to_heads = b.to_heads + row * job.weights.head_row;
  const bool state_prior = rules.change_prior != ChangePrior::constant;
  float* const to_p = uses_prior_head(job) ? to_heads : nullptr;
  float* const to_p_of_d = rules.held ? nullptr : b.to_p_of_d + r * 2 * pad;
  float* const to_q = rules.transition ? to_heads + (parts.q - (b.heads + row * job.weights.head_row)) : nullptr;
  float* const to_start = job.found.start + (out + 1) * 2 * z;
  over(z, [&](std::int64_t i, std::int64_t n, int) {
    const std::int64_t at = out * z + i;
    const Gauss belief{load(job.output.belief_mean + at, n), load(job.output.belief_log_std + at, n)};
    const Vec belief_precision = exp(-2.0f * belief.log_std);
    Gauss pre_r, pre_e, pre_static{}, pre_change;
    const Gauss fresh = head(nullptr, 0, parts.start, z, i, n, pre_r);
    const Gauss e = parts.q ? head(parts.q, pad, parts.posterior, z, i, n, pre_e) : (pre_e = pre_r, fresh);
    const Vec from_belief = rules.belief_weight * belief_precision;
    const Vec from_evidence = rules.evidence_weight * exp(-2.0f * e.log_std);
    const Vec precision = from_belief + from_evidence;
    const Vec share = from_belief / precision, rest = from_evidence / precision;
    const Gauss q{share * belief.mean + rest * e.mean, -0.5f * log(precision)};
    const Gauss c = change_prior(parts, pad, z, i, n, pre_change);
    const Vec c_precision = exp(-2.0f * c.log_std);

    const Gauss to_belief = into_belief(job, out + 1, b.gv + r * s.latent_row, mean, log_std, i, n);
    Gauss gq{}, g_static_prior{}, gc{}, g_new{};
    if (changed) {
      g_new = to_belief;
      kl_backward(rules.reset ? fresh : e, c, c_precision, charge_weight, g_new, gc);
    } else {
      gq = to_belief;
    }
    const Gauss p = parts.p_static ? head(parts.p_static, pad, parts.prior_static, z, i, n, pre_static) : belief;
    kl_backward(q, p, parts.p_static ? exp(-2.0f * p.log_std) : belief_precision, static_weight, gq, g_static_prior);
    kl_backward(q, c, c_precision, change_weight, gq, gc);

    const Vec pull = 2.0f * share * rest * (belief.mean - e.mean) * gq.mean;
    Gauss gb{share * gq.mean, share * gq.log_std - pull};
    Gauss ge{rest * gq.mean, rest * gq.log_std + pull}, gr{};
    if (rules.reset) {
      gr = g_new;
    } else {
      ge = {ge.mean + g_new.mean, ge.log_std + g_new.log_std};
    }
    if (to_q) {
      const Gauss g = through_clamp(pre_e, ge);
      store(to_q + i, first(g.mean, n));
      store(to_q + pad + i, first(g.log_std, n));
      float* const stream = job.found.posterior + (out + 1) * 2 * z;
      store(stream + i, g.mean, n);
      store(stream + z + i, g.log_std, n);
    } else {
      gr = {gr.mean + ge.mean, gr.log_std + ge.log_std};
    }
    const Gauss g_start = through_clamp(pre_r, gr);
    store(to_start + i, g_start.mean, n);
    store(to_start + z + i, g_start.log_std, n);

    Gauss g_prior{};  // of the stream `prior` at t
    const Gauss g_change_pre = through_clamp(pre_change, gc);
    if (to_p) {
      Gauss g = state_prior ? g_change_pre : Gauss{};
      if (to_p_of_d) {
        const Gauss later{load(to_p_of_d + i), load(to_p_of_d + pad + i)};
        float* const to_start = sums.prior_of_start;
        if (changed && rules.reset) {
          store(to_start + i, load(to_start + i) + later.mean);
          store(to_start + pad + i, load(to_start + pad + i) + later.log_std);
        } else {
          g = {g.mean + later.mean, g.log_std + later.log_std};
        }
      }
      store(to_p + i, first(g.mean, n));
      store(to_p + pad + i, first(g.log_std, n));
    }
    if (rules.change_prior == ChangePrior::full) {
      g_prior = g_change_pre;
    } else {
      store(sums.prior_bias + i, load(sums.prior_bias + i) + first(g_change_pre.mean, n));
      store(sums.prior_bias + pad + i, load(sums.prior_bias + pad + i) + first(g_change_pre.log_std, n));
    }
    if (parts.p_static) {
      const Gauss g = through_clamp(pre_static, g_static_prior);
      store(to_p_of_d + i, first(g.mean, n));
      store(to_p_of_d + pad + i, first(g.log_std, n));
      g_prior = {g_prior.mean + g.mean, g_prior.log_std + g.log_std};
    } else {
      gb = {gb.mean + g_static_prior.mean, gb.log_std + g_static_prior.log_std};
    }
    if (job.found.prior) {
      float* const stream = job.found.prior + out * 2 * z;
      store(stream + i, g_prior.mean, n);
      store(stream + z + i, g_prior.log_std, n);
    }
    store(mean + i, first(gb.mean, n));
    store(log_std + i, first(gb.log_std, n));
  });
}

// d at `out` + 1 is d', or d0 after a reset
AHLM_INLINE void split_state_gradient(const ChangePointJob& job, const ChangePointSums& sums, float* gd,
                                      std::int64_t out) {
  const ScanSizes& s = job.sizes;
  const bool to_start = !uses_state(job) || (job.output.change_points[out + 1] && job.rules.reset);
  const float* const given = job.gradients.state + (out + 1) * s.state;
  over(s.state, [&](std::int64_t i, std::int64_t n, int) {
    const Vec g = load(gd + i) + load(given + i, n);
    if (to_start) store(sums.initial_state + i, load(sums.initial_state + i) + g);
    store(gd + i, to_start ? Vec{} : g);
  });
}

void first_column_backward(const ChangePointJob& job, const Backward& b, const ChangePointSums& sums, std::int64_t r,
                           std::int64_t out) {
  const ScanSizes& s = job.sizes;
  const Vec weight = all(job.gradients.kl_charged[out]);
  float* const to_start = job.found.start + out * 2 * s.latent;
  over(s.latent, [&](std::int64_t i, std::int64_t n, int) {
    Gauss pre, unused{};
    const Gauss belief = head(nullptr, 0, job.input.start + out * 2 * s.latent, s.latent, i, n, pre);
    Gauss g = into_belief(job, out, b.gv + r * s.latent_row, b.mean + r * s.latent_pad, b.log_std + r * s.latent_pad, i, n);
    kl_backward(belief, {Vec{}, Vec{}}, all(1.0f), weight, g, unused);
    g = through_clamp(pre, g);
    store(to_start + i, g.mean, n);
    store(to_start + s.latent + i, g.log_std, n);
  });
  if (!job.rules.held) {
    const std::int64_t pad2 = 2 * s.latent_pad;
    for (std::int64_t i = 0; i < pad2; i += kLanes)
      store(sums.prior_of_start + i, load(sums.prior_of_start + i) + load(b.to_p_of_d + r * pad2 + i));
  }
  over(s.state, [&](std::int64_t i, std::int64_t n, int) {
    const Vec g = load(b.gd + r * s.state_row + i) + load(job.gradients.state + out * s.state + i, n);
    store(sums.initial_state + i, load(sums.initial_state + i) + g);
  });
}

void clear_stream_padding(const ChangePointJob& job, std::int64_t video) {
  const ScanSizes& s = job.sizes;
  const std::int64_t length = job.input.lengths[video], z2 = 2 * s.latent, begin = video * s.snippets;
  const std::int64_t end = begin + s.snippets, last = begin + length - 1;
  clear(job.found.start + (last + 1) * z2, (end - last - 1) * z2);
  if (job.found.prior) clear(job.found.prior + last * z2, (end - last) * z2);
  if (job.found.posterior) {
    clear(job.found.posterior + begin * z2, z2);
    clear(job.found.posterior + (last + 1) * z2, (end - last - 1) * z2);
  }
}

void backward(const ChangePointJob& job, const ScanTile& tile, const ChangePointSums& sums, float* scratch) {
  const ScanSizes& s = job.sizes;
  const auto& w = job.weights;
  const bool has_state = uses_state(job);
  const std::int64_t head_width = w.head_segments * s.latent_pad, pad2 = 2 * s.latent_pad;
  Backward b;
  clear(scratch, backward_layout(job, tile.count, scratch, b));
  for (std::int64_t r = 0; r < tile.count; ++r) clear_stream_padding(job, tile.videos[r]);
  copy(b.d, w.initial_state, s.state_row);
  if (has_state) gru_products(s, w.gru, 0, b.v, 1, b.d, b.from_input, b.from_state);
  const std::int64_t gates = 3 * s.state_pad;
  // steps t -> t + 1 of a chunk lie one after another, each with the videos that still run
  std::int64_t end = job.input.lengths[tile.videos[0]] - 1;
  while (end > 0) {
    const std::int64_t steps = chunk_steps(tile.count), begin = end > steps ? end - steps : 0;
    std::int64_t n_rows = 0, n_states = 0, n_first_states = 0;
    if (has_state) {
      for (std::int64_t t = begin; t < end; ++t) {
        const std::int64_t n = running(job.input.lengths, tile, t + 1);
        for (std::int64_t r = 0; r < n; ++r, ++n_rows) {
          const std::int64_t out = tile.videos[r] * s.snippets + t;
          const bool starts = t == 0 || (job.rules.reset && job.output.change_points[out]);
          b.own[n_rows] = starts ? 0 : ++n_states;
          copy(b.v + n_rows * s.latent_row, job.output.latent + out * s.latent, s.latent);
          if (!starts) copy(b.d + n_states * s.state_row, job.output.state + out * s.state, s.state);
        }
        if (t == begin) n_first_states = n_states;
      }
      gru_products(s, w.gru, n_rows, b.v, n_states, b.d + s.state_row, b.from_input, b.from_state + s.gate_row);
      for (std::int64_t row = 0; row < n_rows; ++row)
        gru_row<true>(s.state_pad, b.from_input + row * s.gate_row, b.from_state + b.own[row] * s.gate_row,
                      b.d + b.own[row] * s.state_row, b.next + row * s.state_row);
      if (w.head_segments)
        multiply(n_rows, head_width, s.state, dense(b.next, s.state_row), packed(w.heads, s.state), b.heads, w.head_row,
                 From::zero);
      if (!job.rules.held)
        multiply(n_first_states, pad2, s.state, dense(b.d + s.state_row, s.state_row), packed(w.heads, s.state),
                 b.p_of_d, pad2, From::zero);
    }
    std::int64_t row = n_rows, state_end = n_states + 1;
    for (std::int64_t t = end - 1; t >= begin; --t) {
      const std::int64_t n = running(job.input.lengths, tile, t + 1);
      row -= has_state ? n : 0;
      // the first row of the step before, if it is in the chunk
      const std::int64_t before = row - running(job.input.lengths, tile, t);
      for (std::int64_t r = 0; r < n; ++r) {
        const std::int64_t out = tile.videos[r] * s.snippets + t;
        const float* p_of_d = w.prior_of_start;
        if (!job.rules.held && b.own[row + r] > 0)
          p_of_d = t > begin ? b.heads + (before + r) * w.head_row : b.p_of_d + (b.own[row + r] - 1) * pad2;
        step_backward(job, b, sums, r, has_state ? row + r : 0, out, p_of_d);
        split_state_gradient(job, sums, b.gd + r * s.state_row, out);
      }
      if (!has_state) continue;
      float* const to_heads = b.to_heads + row * w.head_row;
      if (w.head_segments)
        multiply(n, s.state, head_width, dense(to_heads, w.head_row), packed(w.heads_back, head_width), b.gd,
                 s.state_row, From::c);
      // states of their own pass their gradient through the weights together, those that are d0 at the tile's end
      std::int64_t state_begin = state_end;
      for (std::int64_t r = 0; r < n; ++r) state_begin -= b.own[row + r] > 0;
      for (std::int64_t r = 0; r < n; ++r) {
        const std::int64_t own = b.own[row + r];
        float* const h = b.from_state + own * s.gate_row;
        float* const gd = b.gd + r * s.state_row;
        gru_row_backward(s.state_pad, b.from_input + (row + r) * s.gate_row, h, b.d + own * s.state_row, gd,
                         own ? h : b.to_product, own ? b.to_states + (own - state_begin) * s.state_row : gd);
        if (!own) add_rows(b.to_start_gates, b.to_product, 1, s.gate_row, gates);
      }
      multiply(state_end - state_begin, s.state, gates, dense(b.from_state + state_begin * s.gate_row, s.gate_row),
               packed(w.gru.state_back, gates), b.to_states, s.state_row, From::c);
      for (std::int64_t r = 0; r < n; ++r)
        if (const std::int64_t own = b.own[row + r])
          copy(b.gd + r * s.state_row, b.to_states + (own - state_begin) * s.state_row, s.state_row);
      state_end = state_begin;
      multiply(n, s.latent, gates, dense(b.from_input + row * s.gate_row, s.gate_row), packed(w.gru.input_back, gates),
               b.gv, s.latent_row, From::zero);
    }
    if (has_state) {
      add_gradients(s, n_rows, b.from_input, b.v, s.latent, s.latent_row, sums.gru.input, sums.gru.input_bias);
      add_gradients(s, n_states, b.from_state + s.gate_row, b.d + s.state_row, s.state, s.state_row, sums.gru.state,
                    sums.gru.state_bias);
      const auto add_head = [&](const float* gradient, float* sum) {
        multiply(pad2, s.state, n_rows, transposed(gradient, w.head_row), plain(b.next, s.state_row), sum, s.state_row,
                 From::c);
      };
      if (uses_prior_head(job)) add_head(b.to_heads, sums.prior_state);
      if (job.rules.transition) add_head(b.to_heads + (w.head_segments == 4 ? pad2 : 0), sums.posterior_state);
    }
    end = begin;
  }
  if (has_state) {
    add_gradients(s, 1, b.to_start_gates, b.d, s.state, s.state_row, sums.gru.state, sums.gru.state_bias);
    multiply(1, s.state, gates, dense(b.to_start_gates, s.gate_row), packed(w.gru.state_back, gates),
             sums.initial_state, s.state_row, From::c);
  }
  for (std::int64_t r = 0; r < tile.count; ++r)
    first_column_backward(job, b, sums, r, tile.videos[r] * s.snippets);
}

}  // namespace

namespace ahlm {
#define AHLM_JOIN(a, b) a##b
#define AHLM_NAME(level) AHLM_JOIN(change_point_kernel_, level)
extern const ChangePointKernel AHLM_NAME(AHLM_LEVEL);
const ChangePointKernel AHLM_NAME(AHLM_LEVEL){kPanel, forward_floats, forward, help, backward_floats, backward};
}  // namespace ahlm
