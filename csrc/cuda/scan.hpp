// What the kernels of both scans share: videos of a cluster, rounds through distributed shared memory, launches.
#pragma once

#include "gaussian.hpp"
#include "hardware.hpp"
#include "interface.hpp"
#include "products.hpp"

namespace ahlm::gpu {
namespace {

// What one thread waits for another at; the emulation can leave one out, to see that it would be missed. Tests number
// them likewise.
enum Wait {
  kOpened = 1, kHeadParts, kMessage, kOwnState, kState, kLatents, kEvidence, kGates, kGateParts,
  kKls, kStateOfHeads, kKlsOfBelief
};

struct Video {
  int row, length;  // its first row of (B, T); length 0 where the cluster has fewer than eight videos
};
template <typename Job>
AHLM_DEVICE Video video_at(const Job& job, int slot) {
  const int places = job.few ? kFewVideos : kVideos, index = cluster_index() * places + slot;
  if (slot >= places || index >= job.batch) return {0, 0};
  const int video = static_cast<int>(job.order[index]);
  return {video * job.snippets, static_cast<int>(job.lengths[video])};
}
AHLM_DEVICE std::size_t at(int row, int width, int column) {
  return static_cast<std::size_t>(row) * static_cast<std::size_t>(width) + static_cast<std::size_t>(column);
}
AHLM_DEVICE float converted(float x, float) { return x; }
AHLM_DEVICE Half converted(float x, Half) { return to_half(x); }

template <int kBytes>
struct alignas(kBytes) Chunk {
  std::uint32_t words[kBytes / 4];
};
template <int kBytes>
AHLM_DEVICE Chunk<kBytes> chunk_at(const void* aligned) {
  Chunk<kBytes> chunk;
  __builtin_memcpy(&chunk, __builtin_assume_aligned(aligned, kBytes), kBytes);
  return chunk;
}

// mailboxes of one kind, each expecting its first messages
template <int kBoxes>
AHLM_DEVICE void open(Mailbox (&boxes)[kBoxes], int bytes) {
  for (int i = 0; i < kBoxes; ++i) {
    mailbox_open(&boxes[i]);
    mailbox_expect(&boxes[i], bytes);
  }
}

template <int kH, typename Number, bool kTransition, bool kFew>
struct ForwardShared {
  using Weights = Products<kH, Number, kTransition, kFew>;
  static constexpr int kStateBytes = kVideos * kH * static_cast<int>(sizeof(Number));
  static constexpr int kLatentBytes = kRanks * static_cast<int>(sizeof(LatentMessage<Number>));
  alignas(16) Number state[2][kVideos][Weights::kRow];
  LatentMessage<Number> messages[kRanks], outgoing;
  alignas(16) Number own_state[kH / 32][kVideos][4];
  float head_parts[kH / 32][2][4][32];
  typename Weights::Shared weights;
  Mailbox state_box[2], latent_box[1];

  AHLM_DEVICE void open_boxes() {
    open(state_box, kStateBytes);
    open(latent_box, kLatentBytes);
  }
};

// Of a tile of the GRU: what a lane's own unit and video need. Lanes 0-15 hold reset gates and the state's part of the
// candidate, lanes 16-31 update gates and the input's part; they swap a column each.
struct Gates {
  float reset, update, from_state, from_input;
};
AHLM_DEVICE Gates pick(bool first, const Gates& a, const Gates& b) {
  return {first ? a.reset : b.reset, first ? a.update : b.update, first ? a.from_state : b.from_state,
          first ? a.from_input : b.from_input};
}
AHLM_DEVICE Gates own_gates(const float (&c)[4], bool low) {
  const float first = shuffle_xor(low ? c[1] : c[0], 16), second = shuffle_xor(low ? c[3] : c[2], 16);
  return {low ? c[0] : first, low ? first : c[1], low ? c[2] : second, low ? second : c[3]};
}

// The sum of the heads' products over the warps, for the first warp; the others get nothing of use.
template <int kHeads, typename Shared, typename Number, typename Weights>
AHLM_DEVICE void multiply_heads(Shared& shared, const Weights& weights, const Number (&d)[kVideos][Weights::kRow],
                                int warp, int lane, int n_warps, float (&heads)[kHeads][4]) {
  weights.of_heads(shared.weights, d, warp, lane, heads);
  for (int i = 0; i < kHeads; ++i)
    for (int j = 0; j < 4; ++j) shared.head_parts[warp][i][j][lane] = heads[i][j];
  if (keeps(kHeadParts)) block_barrier();
  if (warp != 0) return;
  for (int i = 0; i < kHeads; ++i)
    for (int j = 0; j < 4; ++j) {
      heads[i][j] = 0.0f;
      for (int w = 0; w < n_warps; ++w) heads[i][j] += shared.head_parts[w][i][j][lane];
    }
}

// What a lane says of its latent dimension of a video: the latent before and after a change, terms of `Distances`.
struct Share {
  float latent[2], kl[3];
};
// By the first warp, of two videos a lane: this block's latents and KLs to every block.
template <typename Shared, typename Number>
AHLM_DEVICE void publish(Shared& shared, int lane, Share (&shares)[2], Number number) {
  AHLM_UNROLL
  for (int i = 0; i < 3; ++i)
    for (int j = 0; j < 2; ++j)
      for (int mask = 4; mask < 32; mask *= 2) shares[j].kl[i] += shuffle_xor(shares[j].kl[i], mask);
  AHLM_UNROLL
  for (int j = 0; j < 2; ++j) {
    const int slot = 2 * (lane % 4) + j;
    for (int i = 0; i < 2; ++i) shared.outgoing.latent[i][slot][lane / 4] = converted(shares[j].latent[i], number);
    if (lane < 4)
      for (int i = 0; i < 3; ++i) shared.outgoing.kl[i][slot] = shares[j].kl[i];
  }
  if (keeps(kMessage)) warp_barrier();
  constexpr int kPieces = sizeof(shared.outgoing) / 16;
  const char* const from = reinterpret_cast<const char*>(&shared.outgoing);
  char* const to = reinterpret_cast<char*>(&shared.messages[cluster_rank()]);
  for (int i = lane; i < kPieces * kRanks; i += 32) {
    const int offset = i % kPieces * 16;
    send(chunk_at<16>(from + offset), to + offset, &shared.latent_box[0], i / kPieces);
  }
  warp_barrier();  // the last round is not of all lanes
}

// Two numbers of a dimension in a row of (B, T, 2Z).
AHLM_DEVICE Gauss stream_at(const float* stream, int row, int latents, int z) {
  if (!stream) return {0.0f, 0.0f};
  return {stream[at(row, 2 * latents, z)], stream[at(row, 2 * latents, latents + z)]};
}

// What a lane's unit needs beside products: the biases of its gates, and d0.
struct Unit {
  float reset, update, from_input, from_state, start;
};
template <typename Job>
AHLM_DEVICE Unit unit_at(const Job& job, int unit) {
  const int size = job.state_size;
  return {job.gru_input_bias[unit] + job.gru_state_bias[unit],
          job.gru_input_bias[size + unit] + job.gru_state_bias[size + unit], job.gru_input_bias[2 * size + unit],
          job.gru_state_bias[2 * size + unit], job.initial_state[unit]};
}
template <typename Math>
AHLM_DEVICE float next_state(const Gates& input, const Gates& state, const Unit& unit, float d) {
  const float reset = Math::sigmoid(input.reset + state.reset + unit.reset);
  const float update = Math::sigmoid(input.update + state.update + unit.update);
  const float candidate = Math::tanh(input.from_input + unit.from_input + reset * (state.from_state + unit.from_state));
  return candidate + update * (d - candidate);
}

// d0 of all videos into the second buffer of the state, and mailboxes that expect the first messages; all wait for all.
template <int kH, typename Shared, typename Number>
AHLM_DEVICE void open_scan(Shared& shared, const float* initial_state, Number number) {
  for (int i = thread_index(); i < kVideos * kH; i += kH)
    shared.state[1][i / kH][i % kH] = converted(initial_state[i % kH], number);
  if (thread_index() == 0) {
    shared.open_boxes();
    mailboxes_opened();
  }
  block_barrier();
  if (keeps(kOpened)) cluster_barrier();
}
// A warp's four units of video `lane % 8`, to all; each lane sends to two blocks.
template <int kH, typename Shared, typename Four>
AHLM_DEVICE void send_units(Shared& shared, int buffer, int warp, int lane, const Four& four) {
  const int unit = cluster_rank() * (kH / kRanks) + 4 * warp;
  for (int i = 0; i < 2; ++i)
    send(four, &shared.state[buffer][lane % 8][unit], &shared.state_box[buffer], lane / 8 * 2 + i);
}
// A lane's unit of a video, with those of its warp, to all.
template <int kH, typename Shared, typename Number>
AHLM_DEVICE void send_state(Shared& shared, int buffer, int warp, int lane, Number value) {
  shared.own_state[warp][2 * (lane % 4) + lane / 16][lane / 4 % 4] = value;
  if (keeps(kOwnState)) warp_barrier();
  send_units<kH>(shared, buffer, warp, lane, chunk_at<4 * sizeof(Number)>(shared.own_state[warp][lane % 8]));
}
// Until what all have sent is here; then the mailbox expects the next round.
AHLM_DEVICE void receive(Wait wait, Mailbox* box, int phase, int bytes) {
  if (keeps(wait)) mailbox_wait(box, phase % 2);
  if (thread_index() == 0) mailbox_expect(box, bytes);
}

// ---- launches

template <typename Job>
int clusters_of(const Job& job) {
  const int places = job.few ? kFewVideos : kVideos;
  return (job.batch + places - 1) / places;
}

#ifdef AHLM_EMULATE

template <typename Job>
int launch(void (*kernel)(Job), const Job& job, int threads, std::size_t shared, void*) {
  return run(clusters_of(job), threads, shared, [&] { kernel(job); }).empty() ? 0 : -1;
}

#else

template <typename Job>
int launch(void (*kernel)(Job), const Job& job, int threads, std::size_t shared, void* stream) {
  const int bytes = static_cast<int>(shared);
  cudaGetLastError();  // what an earlier call left behind is not this launch's
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return static_cast<int>(error);
  const unsigned blocks = static_cast<unsigned>(clusters_of(job) * kRanks);
  kernel<<<blocks, static_cast<unsigned>(threads), shared, static_cast<cudaStream_t>(stream)>>>(job);
  return static_cast<int>(cudaGetLastError());
}

template <typename Job>
int measure(void (*kernel)(Job), int threads, std::size_t shared, AhlmCudaResources* found) {
  const int bytes = static_cast<int>(shared);
  *found = {-1, -1, bytes, threads, -1};
  cudaFuncAttributes attributes;
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, kernel);
  if (error != cudaSuccess) return static_cast<int>(error);
  found->registers = attributes.numRegs;
  found->local_bytes = static_cast<std::int32_t>(attributes.localSizeBytes);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(kRanks);
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared;
  return static_cast<int>(cudaOccupancyMaxActiveClusters(&found->clusters, kernel, &config));
}

#endif

constexpr int kNoKernel = -2;

}  // namespace
}  // namespace ahlm::gpu
