// Matrix products of one block with weights that stay on the chip: tiles of 16 rows x 8 videos, a tile a warp.
//
// Tile of the GRU: rows 0-3 are the reset gate of a warp's four units, 4-7 the update gate, 8-11 the candidate's part
// of the state, 12-15 its part of the input. Tile of a head: rows 0-7 are the means of a block's eight latent dimensions,
// 8-15 their log deviations; of a head every warp does 32 columns, and the sum over warps is the caller's.
// A lane holds rows l / 4 and l / 4 + 8 of videos 2 (l % 4) and 2 (l % 4) + 1.
#pragma once

#include <cstddef>

#include "hardware.hpp"

namespace ahlm::gpu {

constexpr int kVideos = 8, kFewVideos = 2;  // of a cluster
constexpr int kRanks = 8, kOwnLatents = 8, kMostLatents = kRanks * kOwnLatents;

struct WeightArrays {
  const float *gru_state, *gru_input, *heads[2];  // null: zeros
  int latents;
};

// Rows l / 4 and l / 4 + 8 of a tile; null is a row of zeros.
struct Rows {
  const float *first, *second;
};
AHLM_DEVICE Rows state_rows(const float* weight, int size, int unit, int row) {
  const auto at = [=](int gate) { return weight + static_cast<std::size_t>(gate * size + unit) * size; };
  return {at(row / 4), row < 4 ? at(2) : nullptr};
}
AHLM_DEVICE Rows input_rows(const float* weight, int size, int latents, int unit, int row) {
  const auto at = [=](int gate) { return weight + static_cast<std::size_t>(gate * size + unit) * latents; };
  return {at(row / 4), row < 4 ? nullptr : at(2)};
}
AHLM_DEVICE Rows head_rows(const float* weight, int size, int latents, int latent) {
  if (!weight || latent >= latents) return {nullptr, nullptr};
  return {weight + static_cast<std::size_t>(latent) * size, weight + static_cast<std::size_t>(latents + latent) * size};
}
AHLM_DEVICE float element(const float* row, int k, int width) { return row && k < width ? row[k] : 0.0f; }

// What one block's head sends to all: latents before and after a change, and its share of the three KLs.
template <typename Number>
struct alignas(16) LatentMessage {
  Number latent[2][kVideos][kOwnLatents];
  float kl[3][kVideos];
};

template <int kH, typename Number, bool kTransition, bool kFew>
struct Products;

// fp16: tensor cores multiply pieces of the weights, which lanes hold in registers or keep in shared memory.
constexpr int kHalfPadding = 8;  // of a row of the state; keeps ldmatrix free of conflicts

AHLM_DEVICE std::uint32_t pair_at(const float* row, int k, int width) {
  return half_bits(to_half(element(row, k, width))) | half_bits(to_half(element(row, k + 1, width))) << 16;
}
// a lane's pieces of 16 columns of a tile, those from column `from`
AHLM_DEVICE void load_pieces(std::uint32_t (&pieces)[4], const Rows& rows, int from, int width, int lane) {
  const int k = from + 2 * (lane % 4);
  pieces[0] = pair_at(rows.first, k, width);
  pieces[1] = pair_at(rows.second, k, width);
  pieces[2] = pair_at(rows.first, k + 8, width);
  pieces[3] = pair_at(rows.second, k + 8, width);
}
template <int kSteps>
AHLM_DEVICE void load_tile(std::uint32_t (&tile)[kSteps][4], const Rows& rows, int from, int width, int lane) {
  AHLM_UNROLL
  for (int step = 0; step < kSteps; ++step) {
    load_pieces(tile[step], rows, from + 16 * step, width, lane);
    if (step % 4 == 3) warp_barrier();  // all that is on its way takes registers, and these are few
  }
}

// A tile's rows times the state, all columns; `pieces(step)` are a lane's of 16 columns.
template <int kH, typename Pieces>
AHLM_DEVICE void multiply_tile(const Pieces& pieces, const Half (&d)[kVideos][kH + kHalfPadding], int lane,
                               float (&c)[4]) {
  float chain[4][4] = {};  // several sums, so that one product does not wait for the other
  const Half* const row = &d[lane % 8][lane / 8 * 8];
  AHLM_UNROLL
  for (int step = 0; step < kH / 16; step += 2) {
    std::uint32_t piece[4];
    load_matrices(piece, row + 16 * step);
    multiply(chain[step % 4], pieces(step), piece[0], piece[1]);
    multiply(chain[step % 4 + 1], pieces(step + 1), piece[2], piece[3]);
  }
  for (int i = 0; i < 4; ++i) c[i] = (chain[0][i] + chain[1][i]) + (chain[2][i] + chain[3][i]);
}

// A warp's four units, in registers.
template <int kH>
struct HalfGates {
  std::uint32_t state[kH / 16][4], input[kMostLatents / 16][4];

  AHLM_DEVICE void load(const WeightArrays& from, int warp, int lane) {
    const int row = lane / 4, unit = cluster_rank() * (kH / kRanks) + 4 * warp + row % 4;
    load_tile(state, state_rows(from.gru_state, kH, unit, row), 0, kH, lane);
    load_tile(input, input_rows(from.gru_input, kH, from.latents, unit, row), 0, from.latents, lane);
  }
  AHLM_DEVICE void of_state(const Half (&d)[kVideos][kH + kHalfPadding], int lane, float (&c)[4]) const {
    multiply_tile<kH>([&](int step) -> const std::uint32_t(&)[4] { return state[step]; }, d, lane, c);
  }
  // from the messages of all blocks; a bit a video: its latents after a change
  template <typename Message>
  AHLM_DEVICE void of_latent(const Message (&messages)[kRanks], unsigned changed, int lane, float (&c)[4]) const {
    float chain[2][4] = {};
    AHLM_UNROLL
    for (int step = 0; step < kMostLatents / 16; step += 2) {
      std::uint32_t piece[4];
      load_matrices(piece, messages[2 * step + lane / 8].latent[changed >> lane % 8 & 1][lane % 8]);
      multiply(chain[0], input[step], piece[0], piece[1]);
      multiply(chain[1], input[step + 1], piece[2], piece[3]);
    }
    for (int i = 0; i < 4; ++i) c[i] = chain[0][i] + chain[1][i];
  }
};

// All weights in registers; of a head every warp has 32 columns.
template <int kH, bool kTransition>
struct Products<kH, Half, kTransition, false> {
  static constexpr int kRow = kH + kHalfPadding;
  static constexpr int kHeads = kTransition ? 2 : 1;
  struct Shared {};

  HalfGates<kH> gates;
  std::uint32_t head[kHeads][2][4];

  AHLM_DEVICE void load(const WeightArrays& from, Shared&, int warp, int lane) {
    const int latent = cluster_rank() * kOwnLatents + lane / 4;
    gates.load(from, warp, lane);
    AHLM_UNROLL
    for (int i = 0; i < kHeads; ++i)
      load_tile(head[i], head_rows(from.heads[i], kH, from.latents, latent), 32 * warp, kH, lane);
  }
  AHLM_DEVICE void of_state(const Shared&, const Half (&d)[kVideos][kRow], int, int lane, float (&c)[4]) const {
    gates.of_state(d, lane, c);
  }
  AHLM_DEVICE void of_latent(const Shared&, const LatentMessage<Half> (&messages)[kRanks], unsigned changed, int,
                             int lane, float (&c)[4]) const {
    gates.of_latent(messages, changed, lane, c);
  }
  AHLM_DEVICE void of_heads(const Shared&, const Half (&d)[kVideos][kRow], int warp, int lane,
                            float (&c)[kHeads][4]) const {
    std::uint32_t piece[4];
    load_matrices(piece, &d[lane % 8][32 * warp + lane / 8 * 8]);
    AHLM_UNROLL
    for (int i = 0; i < kHeads; ++i) {
      for (int j = 0; j < 4; ++j) c[i][j] = 0.0f;
      multiply(c[i], head[i][0], piece[0], piece[1]);
      multiply(c[i], head[i][1], piece[2], piece[3]);
    }
  }
};

// c = both rows times both videos over `kWidth` columns, as four sums that are then added up: of columns 0-3, 16-19,
// ..., of 4-7, 20-23, ... A cluster of few videos leaves three lanes of four without one; there each does one of the four
// sums for the first two videos, and all get the result, the same to the last bit.
template <int kWidth, bool kFew, typename At>
AHLM_DEVICE void multiply_rows(float (&c)[4], const float* first, const float* second, int lane, At video) {
  constexpr int kSums = kFew ? 1 : 4;
  float sums[kSums][4] = {};
#ifndef AHLM_EMULATE
#pragma unroll(kFew ? 4 : 1)
#endif
  for (int i = 0; i < kWidth; i += 16) {
    AHLM_UNROLL
    for (int j = 0; j < kSums; ++j) {
      const int k = i + 4 * (kFew ? lane % 4 : j);
      const float4 a = *reinterpret_cast<const float4*>(first + k), b = *reinterpret_cast<const float4*>(second + k);
      const float4 x = *reinterpret_cast<const float4*>(video(0, k)), y = *reinterpret_cast<const float4*>(video(1, k));
      const auto dot = [](const float4& u, const float4& v, float sum) {
        return sum + u.x * v.x + u.y * v.y + u.z * v.z + u.w * v.w;
      };
      sums[j][0] = dot(a, x, sums[j][0]);
      sums[j][1] = dot(a, y, sums[j][1]);
      sums[j][2] = dot(b, x, sums[j][2]);
      sums[j][3] = dot(b, y, sums[j][3]);
    }
  }
  AHLM_UNROLL
  for (int i = 0; i < 4; ++i) {
    if constexpr (kFew) {
      const float two = sums[0][i] + shuffle_xor(sums[0][i], 1);
      c[i] = two + shuffle_xor(two, 2);
    } else {
      c[i] = (sums[0][i] + sums[1][i]) + (sums[2][i] + sums[3][i]);
    }
  }
}

// fp32: weights are in shared memory. Rows of zeros are not kept: their lanes do the work of a row that is there, and
// nobody reads what they find. Padding keeps 16-byte loads of eight rows free of conflicts.
template <int kH, bool kTransition, bool kFew>
struct Products<kH, float, kTransition, kFew> {
  static constexpr int kRow = kH + 4, kInputRow = kMostLatents + 4;
  static constexpr int kHeads = kTransition ? 2 : 1, kWarps = kH / 32;
  struct Shared {
    alignas(16) float state[kWarps][12][kRow], input[kWarps][12][kInputRow], head[kHeads][16][kRow];
  };

  AHLM_DEVICE static void load_row(float* to, const float* from, int size, int width, int lane) {
    for (int k = lane; k < size; k += 32) to[k] = element(from, k, width);
  }
  // a warp loads its own gates; the rows of the heads are dealt out; a block barrier must follow
  AHLM_DEVICE void load(const WeightArrays& from, Shared& shared, int warp, int lane) {
    const int latents = from.latents;
    for (int row = 0; row < 12; ++row) {
      const int gate = row / 4, unit = cluster_rank() * (kH / kRanks) + 4 * warp + row % 4;
      const std::size_t place = static_cast<std::size_t>(gate * kH + unit);
      load_row(shared.state[warp][row], from.gru_state + place * kH, kH, kH, lane);
      load_row(shared.input[warp][row], from.gru_input + place * latents, kMostLatents, latents, lane);
    }
    for (int i = 0; i < kHeads; ++i)
      for (int row = warp; row < 16; row += kWarps) {
        const Rows rows = head_rows(from.heads[i], kH, latents, cluster_rank() * kOwnLatents + row % 8);
        load_row(shared.head[i][row], row < 8 ? rows.first : rows.second, kH, kH, lane);
      }
  }
  // the first of the two videos of a lane
  AHLM_DEVICE static int first_video(int lane) { return kFew ? 0 : 2 * (lane % 4); }
  AHLM_DEVICE void of_state(const Shared& shared, const float (&d)[kVideos][kRow], int warp, int lane,
                            float (&c)[4]) const {
    const float* const video = d[first_video(lane)];
    multiply_rows<kH, kFew>(c, shared.state[warp][lane / 4], shared.state[warp][8 + lane / 4 % 4], lane,
                            [=](int j, int k) { return video + j * kRow + k; });
  }
  AHLM_DEVICE void of_latent(const Shared& shared, const LatentMessage<float> (&messages)[kRanks], unsigned changed,
                             int warp, int lane, float (&c)[4]) const {
    const int pair = first_video(lane);
    const float* const video[2] = {messages[0].latent[changed >> pair & 1][pair],
                                   messages[0].latent[changed >> (pair + 1) & 1][pair + 1]};
    constexpr int kStride = sizeof(LatentMessage<float>) / sizeof(float);
    multiply_rows<kMostLatents, kFew>(
        c, shared.input[warp][lane / 4], shared.input[warp][8 + lane / 4 % 4], lane,
        [&](int j, int k) { return video[j] + k / kOwnLatents * kStride + k % kOwnLatents; });
  }
  AHLM_DEVICE void of_heads(const Shared& shared, const float (&d)[kVideos][kRow], int warp, int lane,
                            float (&c)[kHeads][4]) const {
    const float* const video = d[first_video(lane)] + 32 * warp;
    AHLM_UNROLL
    for (int i = 0; i < kHeads; ++i)
      multiply_rows<32, kFew>(c[i], shared.head[i][lane / 4] + 32 * warp, shared.head[i][8 + lane / 4] + 32 * warp,
                              lane, [=](int j, int k) { return video + j * kRow + k; });
  }
};

}  // namespace ahlm::gpu
