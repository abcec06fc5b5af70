// The snippet scan of level 1 and its reverse: float32, ragged batches, threads over videos.
//
// Arrays are those of kernels/snippet_scan/types.py, C-contiguous; the equations are in its reference.py.
#pragma once

#include <cstdint>

#include "scan_types.hpp"

namespace ahlm {

struct SnippetInput {
  const float *prior_stream, *posterior_stream;
  const float *gru_input, *gru_state, *gru_input_bias, *gru_state_bias, *prior_state, *posterior_state, *initial_state;
  const float* noise;
  const bool* change_points;
  const std::int64_t* lengths;
};
struct SnippetOutput {
  float *kl, *latent, *state;
};
struct SnippetGradients {
  const float *kl, *latent, *state;
};
struct SnippetInputGradients {
  float *prior_stream, *posterior_stream;
  float *gru_input, *gru_state, *gru_input_bias, *gru_state_bias, *prior_state, *posterior_state, *initial_state;
};

void snippet_scan(const ScanSizes& sizes, const SnippetInput& input, unsigned n_threads, const SnippetOutput& output);
void snippet_scan_backward(const ScanSizes& sizes, const SnippetInput& input, const SnippetOutput& output,
                           const SnippetGradients& gradients, unsigned n_threads, const SnippetInputGradients& found);

// ---- between the driver and the kernels of each instruction set

struct SnippetWeights {
  GruWeights gru;
  const float *heads, *heads_back, *initial_state;  // heads: P1 then Q1
  std::int64_t head_row;
};
struct SnippetSums {
  GruGradients gru;
  float *heads, *initial_state;
};
struct SnippetJob {
  ScanSizes sizes;
  SnippetInput input;
  SnippetWeights weights;
  SnippetOutput output;
  SnippetGradients gradients;
  SnippetInputGradients found;
};
struct SnippetKernel {
  std::int64_t panel;
  std::int64_t (*forward_floats)(const SnippetJob&, std::int64_t tile);
  void (*forward)(const SnippetJob&, const ScanTile&, float* scratch);
  std::int64_t (*backward_floats)(const SnippetJob&, std::int64_t tile);
  void (*backward)(const SnippetJob&, const ScanTile&, const SnippetSums&, float* scratch);
};

}  // namespace ahlm
