// The change-point scan forward in half precision. Two warps of each block do nothing but follow the beliefs of the
// block's eight latent dimensions; the others move the state. Filter and KLs are the longest part of a step, and this
// way nothing else is added to them: by the machine code's own latencies (docs/gpu.md) most of both exchanges passes
// while they are computed, so that an exchange less would save little.
//
// What is sent to all blocks for column c (the mailbox of each is one of two, in turn):
//   latents    by the belief warps, as soon as they know the decision of c - 1 (and, under `evidence: transition`, d')
//   d'         by the state warps, as soon as they know the decision of c - 1
//   KLs        by the belief warps, from d'
// While the KLs are on their way, the state warps make d' of column c + 1 of either outcome, as the latents of both are
// there; the decision only picks one. What is read of the streams is read a step or more before it is needed, and
// nothing is done with it before: a conversion would already wait for it.
//
// Nobody overwrites what another has not read, with two buffers each. What is sent for column c + 2 follows the KLs of
// c + 1 of all blocks (it needs that decision), these follow the d' of c + 1 of all state warps, and these follow all
// that state warps read for column c and, through the decision of c, all KLs of c and what belief warps read for them.
// A belief warp reads its KLs of c before it sends those of c + 1, without which nobody knows that decision.
#pragma once

#include "forward.hpp"

namespace ahlm::gpu {
namespace {

// What a block's belief warps send: latents before and after a change.
struct alignas(16) LatentPair {
  Half latent[2][kVideos][kOwnLatents];
};

template <int kH, bool kTransition>
struct HalfShared {
  static constexpr int kStateBytes = kVideos * kH * static_cast<int>(sizeof(Half));
  static constexpr int kLatentBytes = kRanks * static_cast<int>(sizeof(LatentPair));
  static constexpr int kKlBytes = kRanks * kVideos * 16;
  alignas(16) Half state[2][kVideos][kH + kHalfPadding];
  LatentPair latents[2][kRanks], outgoing;
  alignas(16) float kl[2][kRanks][kVideos][4];  // a block's share of the three of a video, and nothing
  alignas(16) Half own_state[kH / 32][2][kVideos][4];  // a warp's units, without and with a change
  alignas(16) std::uint32_t posterior[2][kTransition ? kH / 16 : 1][32][4];  // a head's pieces, of a warp's lanes
  Mailbox state_box[2], latent_box[2], kl_box[2];

  AHLM_DEVICE void open_boxes() {
    open(state_box, kStateBytes);
    open(latent_box, kLatentBytes);
    open(kl_box, kKlBytes);
  }
};

template <typename Shared>
AHLM_DEVICE Distances sum_over_blocks(const Shared& shared, int buffer, int video) {
  Distances total{0.0f, 0.0f, 0.0f};
  AHLM_UNROLL
  for (int i = 0; i < kRanks; ++i) {
    const float4 share = *reinterpret_cast<const float4*>(shared.kl[buffer][i][video]);
    total.from_static += share.x;
    total.from_change += share.y;
    total.charged += share.z;
  }
  return total;
}

// One warp of a block, four of its units: d', and the results that are not of latents.
template <int kH, bool kTransition>
AHLM_DEVICE void move_state(const AhlmCudaScan& job, HalfShared<kH, kTransition>& shared, int warp, int lane) {
  using Shared = HalfShared<kH, kTransition>;
  using Math = Numbers<true>;
  const bool low = lane < 16;
  const int slot = 2 * (lane % 4) + lane / 16, unit = cluster_rank() * (kH / kRanks) + 4 * warp + lane / 4 % 4;
  const Video moved = video_at(job, slot);
  const int steps = video_at(job, 0).length - 1;  // the first is the longest
  const bool writes_decisions = cluster_rank() == 0 && warp == kH / 32 - 1 && lane < 8;
  Judge judge{video_at(job, lane % 8), job.beta0};

  HalfGates<kH> weights;
  weights.load({job.gru_state, job.gru_input, {}, job.latent_size}, warp, lane);
  const Unit own = unit_at(job, unit);
  float tile[4];
  weights.of_state(shared.state[1], lane, tile);
  const Gates gates_of_start = own_gates(tile, low);

  Gates gates = gates_of_start;
  float d = own.start;  // d' of the column, before a restart
  for (int column = 0;; ++column) {
    const int buffer = column % 2, phase = column / 2;

    // d' of the next column, without and with a change at this one
    receive(kLatents, &shared.latent_box[buffer], phase, Shared::kLatentBytes);
    float other_tile[4];
    weights.of_latent(shared.latents[buffer], 0u, lane, tile);
    weights.of_latent(shared.latents[buffer], ~0u, lane, other_tile);
    const float unchanged = next_state<Math>(own_gates(tile, low), gates, own, d);
    const float changed = next_state<Math>(own_gates(other_tile, low), pick(job.reset, gates_of_start, gates), own,
                                           job.reset ? own.start : d);

    Half(&own_rows)[2][kVideos][4] = shared.own_state[warp];
    own_rows[0][slot][lane / 4 % 4] = to_half(unchanged);
    own_rows[1][slot][lane / 4 % 4] = to_half(changed);
    if (keeps(kOwnState)) warp_barrier();

    receive(kKls, &shared.kl_box[buffer], phase, Shared::kKlBytes);
    const Distances kl = sum_over_blocks(shared, buffer, lane % 8);
    const bool is_change = judge.decide(job, column, kl);
    if (column < steps) send_units<kH>(shared, buffer, warp, lane, chunk_at<8>(own_rows[is_change][lane % 8]));
    const bool is_mine = ballot(is_change) >> slot & 1;
    judge.read_forced(job, column + 1);

    // results, while d' is on its way
    if (writes_decisions && column < judge.video.length) {
      const bool is_new = is_change || column == 0;
      write_decision(job, judge.video.row + column, is_change, kl, is_new ? kl.charged : kl.from_static);
    }
    if (column < moved.length)
      job.state[at(moved.row + column, kH, unit)] = !job.uses_state || (job.reset && is_mine) ? own.start : d;
    if (column == steps) break;
    d = is_mine ? changed : unchanged;
    receive(kState, &shared.state_box[buffer], phase, Shared::kStateBytes);
    weights.of_state(shared.state[buffer], lane, tile);
    gates = own_gates(tile, low);
  }
}

// One of the last two warps of a block: its eight latent dimensions, of the even or the odd videos; a lane has one of each.
template <int kH, bool kTransition>
AHLM_DEVICE void follow_beliefs(const AhlmCudaScan& job, HalfShared<kH, kTransition>& shared, int odd, int lane) {
  using Math = Numbers<true>;
  const int slot = 2 * (lane % 4) + odd, z = cluster_rank() * kOwnLatents + lane / 4;
  const bool is_latent = z < job.latent_size;
  const Video drawn = video_at(job, slot);
  const int steps = video_at(job, 0).length - 1;
  Judge judge{video_at(job, lane % 8), job.beta0};

  // weights of the heads: the prior's in registers, of which there are too few for the posterior's
  std::uint32_t prior[kH / 16][4];
  load_tile(prior, head_rows(job.prior_state, kH, job.latent_size, z), 0, kH, lane);
  if constexpr (kTransition)
    for (int step = 0; step < kH / 16; ++step)
      load_pieces(shared.posterior[odd][step][lane], head_rows(job.posterior_state, kH, job.latent_size, z), 16 * step,
                  kH, lane);
  // both warps multiply for all eight videos, as tensor cores do
  const auto head = [&](const auto& pieces, int buffer) {
    float tile[4];
    multiply_tile<kH>(pieces, shared.state[buffer], lane, tile);
    return odd ? Gauss{tile[1], tile[3]} : Gauss{tile[0], tile[2]};
  };
  const auto prior_head = [&](int buffer) {
    return head([&](int step) -> const std::uint32_t(&)[4] { return prior[step]; }, buffer);
  };
  const Gauss prior_of_start = prior_head(1);
  Gauss bias{0.0f, 0.0f};
  if (is_latent && job.prior_bias) bias = {job.prior_bias[z], job.prior_bias[job.latent_size + z]};

  // to every block: latents, and this warp's shares of the KLs
  const auto send_latents = [&](int buffer, const float (&latent)[2]) {
    for (int i = 0; i < 2; ++i) shared.outgoing.latent[i][slot][lane / 4] = to_half(latent[i]);
    if (keeps(kMessage)) warp_barrier();
    const int outcome = lane / 4 % 2;
    const auto row = chunk_at<16>(shared.outgoing.latent[outcome][slot]);
    Half* const to = shared.latents[buffer][cluster_rank()].latent[outcome][slot];
    AHLM_UNROLL
    for (int i = lane / 8; i < kRanks; i += 4) send(row, to, &shared.latent_box[buffer], i);
  };
  const auto send_kl = [&](int buffer, const float (&kl)[3]) {
    float4 sums{kl[0], kl[1], kl[2], 0.0f};
    AHLM_UNROLL
    for (int mask = 4; mask < 32; mask *= 2) {
      sums.x += shuffle_xor(sums.x, mask);
      sums.y += shuffle_xor(sums.y, mask);
      sums.z += shuffle_xor(sums.z, mask);
    }
    send(sums, shared.kl[buffer][cluster_rank()][slot], &shared.kl_box[buffer], lane / 4);
  };

  // column 0
  Gauss belief{0.0f, 0.0f}, prior_of_state = prior_of_start;
  Column now = column_at(job, drawn, 0, z), upcoming = column_at(job, drawn, 1, z);
  judge.read_forced(job, 1);
  float drawn_latent;
  {
    float noise = 0.0f;
    if (drawn.length > 0 && is_latent) {
      belief = clamped(stream_at(job.start, drawn.row, job.latent_size, z));
      if (job.noise) noise = job.noise[at(drawn.row, job.latent_size, z)];
    }
    drawn_latent = belief.mean + Math::exp(belief.log_std) * noise;
    send_latents(0, {drawn_latent, drawn_latent});
    send_kl(0, {0.0f, 0.0f, Math::kl(belief, {0.0f, 0.0f})});
  }
  const auto write_results = [&](int column) {
    if (column < drawn.length && is_latent) write_latent(job, drawn.row + column, z, drawn_latent, belief);
  };
  for (int column = 1; column <= steps; ++column) {
    const int buffer = column % 2, phase = column / 2, sent = (column - 1) % 2;

    // eqs. 4-6: what does not need d' while it is on its way
    Outcomes<Math> either;
    const auto filter = [&](const Gauss& e) { either.filter(job, now, e, belief, prior_of_state, is_latent); };
    if constexpr (!kTransition) {
      filter(clamped(now.start));
      send_latents(buffer, either.share.latent);
    }
    if (keeps(kStateOfHeads)) mailbox_wait(&shared.state_box[sent], (column - 1) / 2 % 2);
    if constexpr (kTransition) {
      const auto pieces = [&](int step) -> const std::uint32_t(&)[4] { return shared.posterior[odd][step][lane]; };
      filter(clamped(sum(now.posterior, head(pieces, sent))));
      send_latents(buffer, either.share.latent);
    }
    prior_of_state = prior_head(sent);
    either.compare(job, now, bias, prior_of_state, is_latent);
    send_kl(buffer, either.share.kl);

    // the last column's results and the streams of the next but one, while the KLs are on their way
    write_results(column - 1);
    now = upcoming;
    upcoming = column_at(job, drawn, column + 1, z);
    if (keeps(kKlsOfBelief)) mailbox_wait(&shared.kl_box[buffer], phase % 2);
    const bool is_change = judge.decide(job, column, sum_over_blocks(shared, buffer, lane % 8));
    judge.read_forced(job, column + 1);
    const bool is_mine = ballot(is_change) >> slot & 1;
    belief = pick(is_mine, either.fresh, either.fused);
    drawn_latent = is_mine ? either.share.latent[1] : either.share.latent[0];
    if (is_mine && job.reset) prior_of_state = prior_of_start;
  }
  write_results(steps);
}

template <int kH, bool kTransition>
AHLM_KERNEL(kH + 64) scan_forward_half(const AhlmCudaScan job) {
  using Shared = HalfShared<kH, kTransition>;
  Shared& shared = shared_memory<Shared>();
  const int lane = thread_index() % 32, warp = thread_index() / 32;
  open_scan<kH>(shared, job.initial_state, Half{});
  if (warp < kH / 32)
    move_state<kH, kTransition>(job, shared, warp, lane);
  else
    follow_beliefs<kH, kTransition>(job, shared, warp - kH / 32, lane);
  cluster_barrier();  // a block's memory outlives all that is sent to it
}

}  // namespace
}  // namespace ahlm::gpu
