// Plain structs that drivers and kernels of the scans exchange.
#pragma once

#include <cstdint>

namespace ahlm {

// Rows of internal buffers: a segment (one gate, a head's means) is padded to 16 floats, a row to 32, with zeros.
struct ScanSizes {
  std::int64_t batch, snippets, latent, state;   // B, T, Z, H
  std::int64_t latent_pad, state_pad;            // of a segment
  std::int64_t latent_row, state_row, gate_row;  // of a row of Z, of H, of three gates
};

// Weights of the GRU cell, packed in panels; the last two, for the reverse scan, are transposed.
struct GruWeights {
  const float *input, *state, *input_bias, *state_bias, *input_back, *state_back;
};
// Sums of weight gradients, in padded rows.
struct GruGradients {
  float *input, *state, *input_bias, *state_bias;
};

// Videos that run side by side, the longest first, so that those still running are always the first ones.
struct ScanTile {
  const std::int64_t* videos;
  std::int64_t count;
};

// A second thread that takes half of the matrix products of the thread that scans a tile, one turn after another. A
// turn's second half is `taken` by whoever comes first: a helper that the system lets wait holds nobody up.
struct ScanHelper {
  static constexpr std::uint64_t kEnd = ~std::uint64_t{0};
  alignas(64) std::uint64_t given;  // kEnd: the helper may go
  const void* products;
  std::int64_t n_products;
  alignas(64) std::uint64_t taken;
  alignas(64) std::uint64_t done;
  void (*yield)();
};

}  // namespace ahlm
