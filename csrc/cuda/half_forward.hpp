// The change-point scan forward in half precision. One warp of each block does nothing but follow the beliefs of the
// block's eight latent dimensions; the others move the state. Filter and KLs are the longest part of a step, and this
// way nothing else is added to them: by the machine code's own latencies (docs/gpu.md) they take longer than either
// way to all blocks, so that an exchange less would save nothing.
//
// What is sent to all blocks for column c (the mailbox of each is one of two, in turn):
//   latents    by the belief warps, as soon as they know the decision of c - 1 (and, under `evidence: transition`, d')
//   d'         by the state warps, as soon as they know the decision of c - 1
//   KLs        by the belief warps, from d'
// While the KLs are on their way, the state warps make d' of column c + 1 of either outcome, as the latents of both are
// there; the decision only picks one.
//
// Nobody overwrites what another has not read, with two buffers each. What is sent for column c + 2 follows the KLs of
// c + 1 of all blocks (it needs that decision), these follow the d' of c + 1 of all state warps, and these follow all
// that state warps read for column c and, through the decision of c, all KLs of c and what belief warps read for them.
// A belief warp reads its KLs of c before it sends those of c + 1, without which nobody knows that decision.
#pragma once

#include "forward.hpp"

namespace ahlm::gpu {
namespace {

// What a block's belief warp sends: latents before and after a change.
struct alignas(16) LatentPair {
  Half latent[2][kVideos][kOwnLatents];
};

template <int kH, bool kTransition>
struct HalfShared {
  static constexpr int kHeads = kTransition ? 2 : 1;
  static constexpr int kStateBytes = kVideos * kH * static_cast<int>(sizeof(Half));
  static constexpr int kLatentBytes = kRanks * static_cast<int>(sizeof(LatentPair));
  static constexpr int kKlBytes = kRanks * kVideos * 16;
  alignas(16) Half state[2][kVideos][kH + kHalfPadding];
  LatentPair latents[2][kRanks], outgoing;
  alignas(16) float kl[2][kRanks][kVideos][4];  // a block's share of the three of a video, and nothing
  alignas(16) Half own_state[kH / 32][kVideos][4];
  KeptTile<kH> heads[kHeads];
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
    const bool is_forced = judge.is_forced(job, column);

    // d' of the next column, without and with a change at this one
    receive(kLatents, &shared.latent_box[buffer], phase, Shared::kLatentBytes);
    float other_tile[4];
    weights.of_latent(shared.latents[buffer], 0u, lane, tile);
    weights.of_latent(shared.latents[buffer], ~0u, lane, other_tile);
    const float unchanged = next_state<Math>(own_gates(tile, low), gates, own, d);
    const float changed = next_state<Math>(own_gates(other_tile, low), pick(job.reset, gates_of_start, gates), own,
                                           job.reset ? own.start : d);

    receive(kKls, &shared.kl_box[buffer], phase, Shared::kKlBytes);
    const Distances kl = sum_over_blocks(shared, buffer, lane % 8);
    const bool is_change = judge.decide(job, column, kl, is_forced);
    const bool is_mine = ballot(is_change) >> slot & 1;
    const float next = is_mine ? changed : unchanged;
    if (column < steps) send_state<kH>(shared, buffer, warp, lane, to_half(next));

    // results, while d' is on its way
    if (writes_decisions && column < judge.video.length) {
      const bool is_new = is_change || column == 0;
      write_decision(job, judge.video.row + column, is_change, kl, is_new ? kl.charged : kl.from_static);
    }
    if (column < moved.length)
      job.state[at(moved.row + column, kH, unit)] = !job.uses_state || (job.reset && is_mine) ? own.start : d;
    if (column == steps) break;
    d = next;
    receive(kState, &shared.state_box[buffer], phase, Shared::kStateBytes);
    weights.of_state(shared.state[buffer], lane, tile);
    gates = own_gates(tile, low);
  }
}

// The last warp of a block, its eight latent dimensions; a lane has one of them and two videos.
template <int kH, bool kTransition>
AHLM_DEVICE void follow_beliefs(const AhlmCudaScan& job, HalfShared<kH, kTransition>& shared, int lane) {
  using Shared = HalfShared<kH, kTransition>;
  using Math = Numbers<true>;
  const int pair = 2 * (lane % 4), z = cluster_rank() * kOwnLatents + lane / 4;
  const bool is_latent = z < job.latent_size;
  const Video drawn[2] = {video_at(job, pair), video_at(job, pair + 1)};
  const int steps = video_at(job, 0).length - 1;
  Judge judge{video_at(job, lane % 8), job.beta0};

  shared.heads[0].load(head_rows(job.prior_state, kH, job.latent_size, z), kH, lane);
  if constexpr (kTransition) shared.heads[1].load(head_rows(job.posterior_state, kH, job.latent_size, z), kH, lane);
  float heads[Shared::kHeads][4];
  multiply_kept<kH>(shared.heads, shared.state[1], lane, heads);
  const Gauss prior_of_start{heads[0][0], heads[0][2]};
  Gauss bias{0.0f, 0.0f};
  if (is_latent && job.prior_bias) bias = {job.prior_bias[z], job.prior_bias[job.latent_size + z]};

  // to every block: latents, and this block's shares of the KLs
  const auto send_latents = [&](int buffer, const float (&latent)[2][2]) {
    for (int i = 0; i < 2; ++i)
      for (int j = 0; j < 2; ++j) shared.outgoing.latent[i][pair + j][lane / 4] = to_half(latent[i][j]);
    if (keeps(kMessage)) warp_barrier();
    constexpr int kPieces = sizeof(LatentPair) / 16;
    const int offset = lane % kPieces * 16;
    const auto piece = chunk_at<16>(reinterpret_cast<const char*>(&shared.outgoing) + offset);
    char* const to = reinterpret_cast<char*>(&shared.latents[buffer][cluster_rank()]) + offset;
    AHLM_UNROLL
    for (int i = lane / kPieces; i < kRanks; i += 32 / kPieces) send(piece, to, &shared.latent_box[buffer], i);
  };
  const auto send_kl = [&](int buffer, const float (&kl)[3][2]) {
    // a lane first gives one of its videos away, so that four lanes end with the sums of the same one
    const bool low = lane < 16;
    float4 sums{0.0f, 0.0f, 0.0f, 0.0f};
    float* const sum[3] = {&sums.x, &sums.y, &sums.z};
    AHLM_UNROLL
    for (int i = 0; i < 3; ++i) {
      *sum[i] = (low ? kl[i][0] : kl[i][1]) + shuffle_xor(low ? kl[i][1] : kl[i][0], 16);
      *sum[i] += shuffle_xor(*sum[i], 8);
      *sum[i] += shuffle_xor(*sum[i], 4);
    }
    float(&to)[4] = shared.kl[buffer][cluster_rank()][pair + lane / 16];
    AHLM_UNROLL
    for (int i = 0; i < 2; ++i) send(sums, to, &shared.kl_box[buffer], 2 * (lane / 4 % 4) + i);
  };

  // column 0
  Gauss belief[2], prior_of_state[2] = {prior_of_start, prior_of_start};
  Column upcoming[2];
  float drawn_latent[2];
  {
    float latent[2][2], kl[3][2] = {};
    AHLM_UNROLL
    for (int j = 0; j < 2; ++j) {
      belief[j] = {0.0f, 0.0f};
      float noise = 0.0f;
      if (drawn[j].length > 0 && is_latent) {
        belief[j] = clamped(stream_at(job.start, drawn[j].row, job.latent_size, z));
        if (job.noise) noise = job.noise[at(drawn[j].row, job.latent_size, z)];
      }
      drawn_latent[j] = latent[0][j] = latent[1][j] = belief[j].mean + Math::exp(belief[j].log_std) * noise;
      kl[2][j] = Math::kl(belief[j], {0.0f, 0.0f});
      upcoming[j] = column_at(job, drawn[j], 0, z);
    }
    send_latents(0, latent);
    send_kl(0, kl);
  }
  for (int column = 1;; ++column) {
    const auto write_results = [&](int of) {
      AHLM_UNROLL
      for (int j = 0; j < 2; ++j)
        if (of < drawn[j].length && is_latent) write_latent(job, drawn[j].row + of, z, drawn_latent[j], belief[j]);
    };
    if (column > steps) {
      write_results(column - 1);
      break;
    }
    const int buffer = column % 2, phase = column / 2, sent = (column - 1) % 2;
    const bool is_forced = judge.is_forced(job, column);
    const Column now[2] = {upcoming[0], upcoming[1]};

    // eqs. 4-6: what does not need d' while it is on its way
    Outcomes<Math> either;
    const auto filter = [&](int j, const Gauss& e) {
      either.filter(job, j, now[j], e, belief[j], prior_of_state[j], is_latent);
    };
    if constexpr (!kTransition) {
      for (int j = 0; j < 2; ++j) filter(j, clamped(now[j].start));
      send_latents(buffer, either.latent);
    }
    if (keeps(kStateOfHeads)) mailbox_wait(&shared.state_box[sent], (column - 1) / 2 % 2);
    multiply_kept<kH>(shared.heads, shared.state[sent], lane, heads);
    if constexpr (kTransition) {
      for (int j = 0; j < 2; ++j) filter(j, clamped(sum(now[j].posterior, {heads[1][j], heads[1][2 + j]})));
      send_latents(buffer, either.latent);
    }
    AHLM_UNROLL
    for (int j = 0; j < 2; ++j) {
      prior_of_state[j] = {heads[0][j], heads[0][2 + j]};
      either.compare(job, j, now[j], bias, prior_of_state[j], is_latent);
    }
    send_kl(buffer, either.kl);

    // the last column's results and the next one's streams, while the KLs are on their way
    write_results(column - 1);
    for (int j = 0; j < 2; ++j) upcoming[j] = column_at(job, drawn[j], column, z);
    if (keeps(kKlsOfBelief)) mailbox_wait(&shared.kl_box[buffer], phase % 2);
    const bool is_change = judge.decide(job, column, sum_over_blocks(shared, buffer, lane % 8), is_forced);
    const unsigned changed = ballot(is_change);
    AHLM_UNROLL
    for (int j = 0; j < 2; ++j) {
      const bool is_mine = changed >> (pair + j) & 1;
      belief[j] = pick(is_mine, either.fresh[j], either.fused[j]);
      drawn_latent[j] = is_mine ? either.latent[1][j] : either.latent[0][j];
      if (is_mine && job.reset) prior_of_state[j] = prior_of_start;
    }
  }
}

template <int kH, bool kTransition>
AHLM_KERNEL(kH + 32) scan_forward_half(const AhlmCudaScan job) {
  using Shared = HalfShared<kH, kTransition>;
  Shared& shared = shared_memory<Shared>();
  const int lane = thread_index() % 32, warp = thread_index() / 32;
  open_scan<kH>(shared, job.initial_state, Half{});
  if (warp < kH / 32)
    move_state<kH, kTransition>(job, shared, warp, lane);
  else
    follow_beliefs<kH, kTransition>(job, shared, lane);
  cluster_barrier();  // a block's memory outlives all that is sent to it
}

}  // namespace
}  // namespace ahlm::gpu
