// The change-point scan (eqs. 4-8) and its reverse, on clusters of 8 blocks: nvcc for sm_90, or any C++ compiler with
// -DAHLM_EMULATE (emulation.hpp). What is computed is in kernels/change_point_scan/reference.py and not repeated here.
//
// A cluster takes eight videos, of neighbouring length (or two, where there are few). Each block owns an eighth of the
// units of the state and eight latent dimensions, with their weights. A step of the forward kernel here, which is that
// in single precision, is two rounds through distributed shared memory: every block sends its units' d' to all, and its
// latents and shares of the KLs to all. All then know the decision. half_forward.hpp has the other forward kernel.
// What is read in a step was sent in it, and nobody sends in the next step before having read in this one and having
// heard from all; so one buffer is enough for latents, and two for the state, whose senders run a round ahead.
#include "forward.hpp"
#include "half_forward.hpp"

namespace ahlm::gpu {
namespace {

// ---- forward in single precision

template <int kH, bool kTransition, bool kFew>
AHLM_KERNEL(kH) scan_forward(const AhlmCudaScan job) {
  using Shared = ForwardShared<kH, float, kTransition, kFew>;
  using Math = Numbers<false>;
  constexpr int kWarps = kH / 32, kHeads = kTransition ? 2 : 1, kOwn = kH / kRanks;
  Shared& shared = shared_memory<Shared>();
  const int lane = thread_index() % 32, warp = thread_index() / 32, rank = cluster_rank();
  const int pair = 2 * (lane % 4);
  const bool low = lane < 16;

  // of the decision every lane does one video; of the GRU one video and unit; of the heads, in the first warp, one
  // latent dimension and two videos
  Judge judge{video_at(job, lane % 8), job.beta0};
  const int slot = pair + lane / 16, unit = rank * kOwn + 4 * warp + lane / 4 % 4;
  const Video moved = video_at(job, slot);
  const int z = rank * kOwnLatents + lane / 4;
  const bool is_latent = z < job.latent_size;
  const Video drawn[2] = {video_at(job, pair), video_at(job, pair + 1)};
  const int steps = video_at(job, 0).length - 1;  // the first is the longest

  typename Shared::Weights weights;
  weights.load({job.gru_state, job.gru_input, {job.prior_state, job.posterior_state}, job.latent_size}, shared.weights,
               warp, lane);
  const Unit own = unit_at(job, unit);
  open_scan<kH>(shared, job.initial_state, 0.0f);

  // what the weights make of d0: of the GRU at the start and after every reset, of the heads for the static prior
  float tile[4], heads[kHeads][4];
  weights.of_state(shared.weights, shared.state[1], warp, lane, tile);
  const Gates gates_of_start = own_gates(tile, low);
  multiply_heads(shared, weights, shared.state[1], warp, lane, kWarps, heads);
  const Gauss prior_of_start{heads[0][0], heads[0][2]};

  // column 0
  Gauss belief[2], prior_of_state[2] = {prior_of_start, prior_of_start}, bias{0.0f, 0.0f};
  Column column[2];
  if (warp == 0) {
    if (is_latent && job.prior_bias) bias = {job.prior_bias[z], job.prior_bias[job.latent_size + z]};
    Share shares[2];
    AHLM_UNROLL
    for (int j = 0; j < 2; ++j) {
      belief[j] = {0.0f, 0.0f};
      float noise = 0.0f;
      if (drawn[j].length > 0 && is_latent) {
        belief[j] = clamped(stream_at(job.start, drawn[j].row, job.latent_size, z));
        if (job.noise) noise = job.noise[at(drawn[j].row, job.latent_size, z)];
      }
      const float latent = belief[j].mean + Math::exp(belief[j].log_std) * noise;
      shares[j] = {{latent, latent}, {0.0f, 0.0f, Math::kl(belief[j], {0.0f, 0.0f})}};
      if (drawn[j].length > 0 && is_latent) write_latent(job, drawn[j].row, z, latent, belief[j]);
      column[j] = column_at(job, drawn[j], 0, z);
    }
    publish(shared, lane, shares, 0.0f);
  }
  receive(kLatents, &shared.latent_box[0], 0, Shared::kLatentBytes);
  const auto sum_over_blocks = [&] {
    Distances total{0.0f, 0.0f, 0.0f};
    AHLM_UNROLL
    for (int i = 0; i < kRanks; ++i) {
      total.from_static += shared.messages[i].kl[0][lane % 8];
      total.from_change += shared.messages[i].kl[1][lane % 8];
      total.charged += shared.messages[i].kl[2][lane % 8];
    }
    return total;
  };
  const bool writes_decisions = rank == 0 && warp == kWarps - 1 && lane < 8;
  if (writes_decisions && judge.video.length > 0) {
    const Distances kl = sum_over_blocks();
    write_decision(job, judge.video.row, false, kl, kl.charged);
  }
  if (moved.length > 0) job.state[at(moved.row, kH, unit)] = own.start;

  unsigned changed = 0;  // a bit a video
  float d = own.start;
  Gates gates = gates_of_start;
  judge.read_forced(job, 1);
  for (int t = 0; t < steps; ++t) {
    const int buffer = t % 2;

    // d' of this block's units, to all
    weights.of_latent(shared.weights, shared.messages, changed, warp, lane, tile);
    const float next = next_state<Math>(own_gates(tile, low), gates, own, d);
    send_state<kH>(shared, buffer, warp, lane, next);

    // eqs. 4-6 of this block's latent dimensions: what does not need d' while it is on its way, the rest, to all
    Outcomes<Math> either[2];
    const auto filter = [&](int j, const Gauss& e) {
      either[j].filter(job, column[j], e, belief[j], prior_of_state[j], is_latent);
    };
    if constexpr (!kTransition)
      if (warp == 0)
        for (int j = 0; j < 2; ++j) filter(j, clamped(column[j].start));
    receive(kState, &shared.state_box[buffer], t / 2, Shared::kStateBytes);
    multiply_heads(shared, weights, shared.state[buffer], warp, lane, kWarps, heads);
    if (warp == 0) {
      AHLM_UNROLL
      for (int j = 0; j < 2; ++j) {
        if constexpr (kTransition) filter(j, clamped(sum(column[j].posterior, {heads[1][j], heads[1][2 + j]})));
        prior_of_state[j] = {heads[0][j], heads[0][2 + j]};
        either[j].compare(job, column[j], bias, prior_of_state[j], is_latent);
      }
      Share shares[2] = {either[0].share, either[1].share};
      publish(shared, lane, shares, 0.0f);
      for (int j = 0; j < 2; ++j) column[j] = column_at(job, drawn[j], t + 1, z);  // nothing reads them in this step
    }

    // what the weights make of d', while the KLs are on their way
    weights.of_state(shared.weights, shared.state[buffer], warp, lane, tile);
    gates = own_gates(tile, low);
    receive(kLatents, &shared.latent_box[0], t + 1, Shared::kLatentBytes);

    // eqs. 7-8
    const Distances distances = sum_over_blocks();
    const bool is_change = judge.decide(job, t + 1, distances);
    judge.read_forced(job, t + 2);
    changed = ballot(is_change);
    if (writes_decisions && judge.is_real(t + 1))
      write_decision(job, judge.video.row + t + 1, is_change, distances,
                     is_change ? distances.charged : distances.from_static);

    const bool restarts = !job.uses_state || (job.reset && (changed >> slot & 1));
    d = restarts ? own.start : next;
    if (restarts) gates = gates_of_start;
    if (t + 1 < moved.length) job.state[at(moved.row + t + 1, kH, unit)] = d;
    if (warp == 0) {
      AHLM_UNROLL
      for (int j = 0; j < 2; ++j) {
        const bool now = changed >> (pair + j) & 1;
        belief[j] = pick(now, either[j].fresh, either[j].fused);
        if (now && job.reset) prior_of_state[j] = prior_of_start;
        if (t + 1 < drawn[j].length && is_latent)
          write_latent(job, drawn[j].row + t + 1, z, now ? either[j].share.latent[1] : either[j].share.latent[0], belief[j]);
      }
    }
  }
  cluster_barrier();  // a block's memory outlives all that is sent to it, whoever changes the loop above
}

// ---- reverse: the gradients that are handed from step to step; everything else is done for all steps at once, outside

constexpr int kBeliefTerms = 9;

template <int kH, bool kTransition>
struct ReverseShared {
  static constexpr int kOwn = kH / kRanks, kGroups = kOwn / 8 + 1;  // eights of rows: own units, and latents
  static constexpr int kGateRow = 4 * kH + 4, kWeightRow = 3 * kH + 4, kEvidenceRow = 2 * kMostLatents + 4;
  alignas(16) float gates[2][kVideos][kGateRow];  // a unit's reset, update, candidate's input part, its state part
  alignas(16) float evidence[kVideos][kEvidenceRow];  // a dimension's mean, log deviation
  alignas(16) float weights[8 * kGroups][kWeightRow];
  alignas(16) float posterior[kTransition ? kOwn : 1][kEvidenceRow];
  float parts[kH / 32][kGroups][2][32];
  Mailbox gate_box[2], evidence_box;
};

// What one unit of a video needs for the step between columns t and t + 1, and for column t.
struct UnitTerms {
  float to_candidate, to_reset, to_update, reset, update, into, through;
  std::uint8_t restarts;  // as loaded: whoever makes it a bool waits for it
};
AHLM_DEVICE UnitTerms unit_terms(const AhlmCudaReverse& job, const Video& video, int t, int unit) {
  if (t < 0 || t >= video.length) return {};
  const std::size_t place = at(video.row + t, job.state_size, unit);
  UnitTerms terms{};
  terms.into = job.into_state[place];
  if (t + 1 >= video.length) return terms;
  terms.to_candidate = job.to_candidate[place];
  terms.to_reset = job.to_reset[place];
  terms.to_update = job.to_update[place];
  terms.reset = job.reset[place];
  terms.update = job.update[place];
  terms.through = job.through_state[place];
  terms.restarts = job.restarts[video.row + t + 1];
  return terms;
}
struct BeliefTerms {
  float into_mean, into_log_std, noise_std, share, pull, mean, log_std, rest, inside;
};
AHLM_DEVICE BeliefTerms belief_terms(const AhlmCudaReverse& job, const Video& video, int t, int z) {
  if (t < 0 || t >= video.length || z >= job.latent_size) return {};
  const float* const p = job.belief_terms + at(video.row + t, kBeliefTerms * job.latent_size, z);
  const auto term = [=](int i) { return p[i * job.latent_size]; };
  return {term(0), term(1), term(2), term(3), term(4), term(5), term(6), term(7), term(8)};
}

template <int kH, bool kTransition, bool kFew>
AHLM_KERNEL(kH) scan_reverse(const AhlmCudaReverse job) {
  using Shared = ReverseShared<kH, kTransition>;
  constexpr int kWarps = kH / 32, kOwn = Shared::kOwn, kGroups = Shared::kGroups;
  Shared& shared = shared_memory<Shared>();
  const int lane = thread_index() % 32, warp = thread_index() / 32, rank = cluster_rank();
  const int latents = job.latent_size;

  // every lane has a unit and a video, those of the first two warps also a latent dimension of the same video
  const int slot = 2 * (lane % 4) + warp % 2, own = 8 * (warp / 2) + lane / 4, unit = rank * kOwn + own;
  const Video video = video_at(job, slot);
  const int z = rank * kOwnLatents + lane / 4;
  const bool has_latent = warp < 2;
  const int last = video_at(job, 0).length - 1;

  for (int i = thread_index(); i < 3 * kH * kOwn; i += kH) {
    const int row = i % kOwn, k = i / kOwn % kH, gate = i / kOwn / kH;
    shared.weights[row][3 * k + gate] = job.gru_state[at(gate * kH + k, kH, rank * kOwn + row)];
  }
  for (int i = thread_index(); i < 3 * kH * kOwnLatents; i += kH) {
    const int row = i % kOwnLatents, k = i / kOwnLatents % kH, gate = i / kOwnLatents / kH;
    const int latent = rank * kOwnLatents + row;
    const float* const from = job.gru_input + at(gate * kH + k, latents, latent);
    shared.weights[kOwn + row][3 * k + gate] = latent < latents ? *from : 0.0f;
  }
  if constexpr (kTransition) {
    for (int i = thread_index(); i < 2 * kMostLatents * kOwn; i += kH) {
      const int row = i % kOwn, latent = i / kOwn % kMostLatents, part = i / kOwn / kMostLatents;
      const float* const from = job.posterior_state + at(part * latents + latent, kH, rank * kOwn + row);
      shared.posterior[row][2 * latent + part] = latent < latents ? *from : 0.0f;
    }
  }
  constexpr int kGateBytes = kVideos * kH * 16, kEvidenceBytes = kVideos * kMostLatents * 8;
  if (thread_index() == 0) {
    for (int i = 0; i < 2; ++i) mailbox_open(&shared.gate_box[i]);
    mailbox_open(&shared.evidence_box);
    mailboxes_opened();
    for (int i = 0; i < 2; ++i) mailbox_expect(&shared.gate_box[i], kGateBytes);
    mailbox_expect(&shared.evidence_box, kEvidenceBytes);
  }
  cluster_barrier();

  // gradients at the column in hand: of the state and of v as later steps give them, of the belief likewise
  float to_state = 0.0f, to_latent = 0.0f;
  Gauss carried{0.0f, 0.0f};
  BeliefTerms belief = has_latent ? belief_terms(job, video, last, z) : BeliefTerms{};
  float into = unit_terms(job, video, last, unit).into;
  UnitTerms upcoming = unit_terms(job, video, last - 1, unit);
  for (int column = last;; --column) {
    const bool is_real = column < video.length;
    const int turn = last - column, buffer = turn % 2;
    if (has_latent) {
      const float mean = carried.mean + belief.into_mean + to_latent;
      const float log_std = carried.log_std + belief.into_log_std + to_latent * belief.noise_std;
      carried = {belief.mean + belief.share * mean, belief.log_std + belief.share * log_std - belief.pull * mean};
      if (is_real && z < latents) {
        job.belief_gradient[at(video.row + column, 2 * latents, z)] = mean;
        job.belief_gradient[at(video.row + column, 2 * latents, latents + z)] = log_std;
      }
      if constexpr (kTransition) {
        alignas(8) const float evidence[2] = {belief.rest * mean,
                                              belief.inside * (belief.rest * log_std + belief.pull * mean)};
        if (column > 0)
          for (int i = 0; i < kRanks; ++i)
            send(chunk_at<8>(evidence), &shared.evidence[slot][2 * z], &shared.evidence_box, i);
      }
      belief = belief_terms(job, video, column - 1, z);
    }
    to_state += into;
    if (is_real) job.state_gradient[at(video.row + column, kH, unit)] = to_state;
    if (column == 0) break;

    const UnitTerms terms = upcoming;
    upcoming = unit_terms(job, video, column - 2, unit);
    into = terms.into;
    float from_evidence = 0.0f;
    if constexpr (kTransition) {
      receive(kEvidence, &shared.evidence_box, turn, kEvidenceBytes);
      for (int k = 0; k < 2 * kMostLatents; k += 4) {
        const float4 w = *reinterpret_cast<const float4*>(&shared.posterior[own][k]);
        const float4 e = *reinterpret_cast<const float4*>(&shared.evidence[slot][k]);
        from_evidence += w.x * e.x + w.y * e.y + w.z * e.z + w.w * e.w;
      }
    }
    // evidence is of d', before a restart, or (of the snippet scan) of the state after it
    const float given = job.after_restart ? to_state + from_evidence : to_state;
    const float to_next = (terms.restarts != 0 ? 0.0f : given) + terms.through + (job.after_restart ? 0.0f : from_evidence);
    const float to_candidate = to_next * terms.to_candidate;
    alignas(16) const float gates[4] = {to_candidate * terms.to_reset, to_next * terms.to_update, to_candidate,
                                        to_candidate * terms.reset};
    AHLM_UNROLL
    for (int i = 0; i < kRanks; ++i)
      send(chunk_at<16>(gates), &shared.gates[buffer][slot][4 * unit], &shared.gate_box[buffer], i);
    receive(kGates, &shared.gate_box[buffer], turn / 2, kGateBytes);

    // back through the weights: each warp 32 units' gates (of few videos, each lane a quarter of them), then the sum
    float c[kGroups][2] = {};
#ifndef AHLM_EMULATE
#pragma unroll 2
#endif
    for (int k = 32 * warp + (kFew ? 4 * (lane % 4) : 0); k < 32 * warp + 32; k += kFew ? 16 : 4) {
      float4 x[2][4];
      AHLM_UNROLL
      for (int j = 0; j < 2; ++j)
        AHLM_UNROLL
        for (int m = 0; m < 4; ++m)
          x[j][m] = *reinterpret_cast<const float4*>(&shared.gates[buffer][(kFew ? 0 : 2 * (lane % 4)) + j][4 * (k + m)]);
      AHLM_UNROLL
      for (int i = 0; i < kGroups; ++i) {
        float w[12];
        AHLM_UNROLL
        for (int m = 0; m < 3; ++m) {
          const float4 four = *reinterpret_cast<const float4*>(&shared.weights[8 * i + lane / 4][3 * k + 4 * m]);
          w[4 * m] = four.x, w[4 * m + 1] = four.y, w[4 * m + 2] = four.z, w[4 * m + 3] = four.w;
        }
        AHLM_UNROLL
        for (int m = 0; m < 4; ++m)
          AHLM_UNROLL
          for (int j = 0; j < 2; ++j)
            c[i][j] += w[3 * m] * x[j][m].x + w[3 * m + 1] * x[j][m].y +
                       w[3 * m + 2] * (i == kGroups - 1 ? x[j][m].z : x[j][m].w);
      }
    }
    AHLM_UNROLL
    for (int i = 0; i < kGroups; ++i)
      for (int j = 0; j < 2; ++j) {
        if constexpr (kFew)
          for (int mask = 1; mask < 4; mask *= 2) c[i][j] += shuffle_xor(c[i][j], mask);
        shared.parts[warp][i][j][lane] = c[i][j];
      }
    if (keeps(kGateParts)) block_barrier();
    to_state = terms.update * to_next;
    to_latent = 0.0f;
    for (int w = 0; w < kWarps; ++w) {
      to_state += shared.parts[w][warp / 2][warp % 2][lane];
      if (has_latent) to_latent += shared.parts[w][kGroups - 1][warp][lane];
    }
  }
  cluster_barrier();
}

// ---- launches

// `use(kernel, threads, shared bytes)` with the kernel of a size, a number of videos, a precision and a reading
template <int kH, bool kFew, typename Use>
int with_single(bool transition, Use use) {
  return transition ? use(scan_forward<kH, true, kFew>, kH, sizeof(ForwardShared<kH, float, true, kFew>))
                    : use(scan_forward<kH, false, kFew>, kH, sizeof(ForwardShared<kH, float, false, kFew>));
}
template <int kH, typename Use>
int with_half(bool transition, Use use) {
  return transition ? use(scan_forward_half<kH, true>, kH + 64, sizeof(HalfShared<kH, true>))
                    : use(scan_forward_half<kH, false>, kH + 64, sizeof(HalfShared<kH, false>));
}
template <int kH, typename Use>
int with_forward(int precision, bool few, bool transition, Use use) {
  if (precision == 16) return with_half<kH>(transition, use);
  return few ? with_single<kH, true>(transition, use) : with_single<kH, false>(transition, use);
}
template <int kH, bool kFew, typename Use>
int with_reverse(bool transition, Use use) {
  return transition ? use(scan_reverse<kH, true, kFew>, kH, sizeof(ReverseShared<kH, true>))
                    : use(scan_reverse<kH, false, kFew>, kH, sizeof(ReverseShared<kH, false>));
}
template <int kH, typename Use>
int with_reverse(bool few, bool transition, Use use) {
  return few ? with_reverse<kH, true>(transition, use) : with_reverse<kH, false>(transition, use);
}

}  // namespace
}  // namespace ahlm::gpu

extern "C" {

using namespace ahlm::gpu;

int ahlm_cuda_change_point_scan(const AhlmCudaScan* scan, std::int32_t precision, void* stream) {
  if (scan->latent_size > kMostLatents || (precision != 32 && precision != 16)) return kNoKernel;
  const auto use = [=](auto kernel, int threads, std::size_t shared) {
    return launch(kernel, *scan, threads, shared, stream);
  };
  if (scan->state_size == 256) return with_forward<256>(precision, scan->few, scan->transition, use);
#ifdef AHLM_EMULATE
  if (scan->state_size == 64) return with_forward<64>(precision, scan->few, scan->transition, use);
#endif
  return kNoKernel;
}

int ahlm_cuda_reverse(const AhlmCudaReverse* reverse, void* stream) {
  if (reverse->latent_size > kMostLatents) return kNoKernel;
  const auto use = [=](auto kernel, int threads, std::size_t shared) {
    return launch(kernel, *reverse, threads, shared, stream);
  };
  if (reverse->state_size == 256) return with_reverse<256>(reverse->few, reverse->transition, use);
#ifdef AHLM_EMULATE
  if (reverse->state_size == 64) return with_reverse<64>(reverse->few, reverse->transition, use);
#endif
  return kNoKernel;
}

#ifdef AHLM_EMULATE

void ahlm_emulation_seed(std::uint64_t seed) { machine().seed = seed; }
void ahlm_emulation_drop(std::int32_t wait) { machine().dropped = wait; }
int ahlm_cuda_device_fits(std::int32_t* fits) {
  *fits = 1;
  return 0;
}
int ahlm_cuda_resources(std::int32_t, AhlmCudaResources*) { return kNoKernel; }
const char* ahlm_cuda_error(int error) {
  return error == -1 ? machine().error.c_str() : "there is no kernel of this size";
}

#else

int ahlm_cuda_device_fits(std::int32_t* fits) {
  int device = 0, major = 0, minor = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  *fits = error == cudaSuccess && major == 9 && minor == 0;
  return static_cast<int>(error);
}

int ahlm_cuda_resources(std::int32_t kernel, AhlmCudaResources* resources) {
  const auto use = [=](auto function, int threads, std::size_t shared) {
    return measure(function, threads, shared, resources);
  };
  if (kernel < 0 || kernel > 9) return kNoKernel;
  if (kernel >= 6) return with_reverse<256>(kernel >= 8, kernel % 2, use);
  return with_forward<256>(kernel < 4 ? 32 : 16, kernel >= 2, kernel % 2, use);
}

const char* ahlm_cuda_error(int error) {
  return error < 0 ? "there is no kernel of this size" : cudaGetErrorString(static_cast<cudaError_t>(error));
}

#endif

}  // extern "C"
