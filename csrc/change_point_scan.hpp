// The change-point scan (eqs. 4-8) and its reverse: float32, ragged batches, threads over videos.
//
// Arrays are those of kernels/change_point_scan/types.py, C-contiguous; a null pointer is an absent tensor. What the
// equations are is in kernels/change_point_scan/reference.py and reference_backward.py, and is not repeated here.
#pragma once

#include <cstdint>

#include "scan_types.hpp"

namespace ahlm {

enum class ChangePrior { state, constant, full };

struct ChangePointRules {
  bool held;        // static_belief
  ChangePrior change_prior;
  bool transition;  // evidence
  float belief_weight, evidence_weight;
  std::int64_t refractory;
  bool reset;
  float alpha, alpha_down, beta0, beta_low, beta_high;
};

struct ChangePointInput {
  const float *start, *prior, *posterior;
  const float *gru_input, *gru_state, *gru_input_bias, *gru_state_bias;
  const float *prior_state, *prior_bias, *posterior_state, *initial_state;
  const float* noise;
  const std::int64_t* lengths;
  const bool* forced_changes;
};

struct ChangePointOutput {
  bool* change_points;
  float *kl_static, *kl_change, *kl_charged, *latent, *belief_mean, *belief_log_std, *state;
};

struct ChangePointGradients {  // given, of the outputs
  const float *kl_static, *kl_change, *kl_charged, *latent, *belief_mean, *belief_log_std, *state;
};

struct ChangePointInputGradients {  // found, of the inputs; null where the input is
  float *start, *prior, *posterior;
  float *gru_input, *gru_state, *gru_input_bias, *gru_state_bias;
  float *prior_state, *prior_bias, *posterior_state, *initial_state;
};

void change_point_scan(const ScanSizes& sizes, const ChangePointRules& rules, const ChangePointInput& input,
                       unsigned n_threads, const ChangePointOutput& output);

void change_point_scan_backward(const ScanSizes& sizes, const ChangePointRules& rules, const ChangePointInput& input,
                                const ChangePointOutput& output, const ChangePointGradients& gradients,
                                unsigned n_threads, const ChangePointInputGradients& found);

// ---- between the driver and the kernels of each instruction set

struct ChangePointWeights {
  GruWeights gru;
  const float *heads, *heads_back;  // [P, Q] or the one that there is
  const float *prior_bias, *initial_state, *prior_of_start;  // padded; the last is P's part of d0
  std::int64_t head_segments, head_row;                      // means and log deviations: 0, 2 or 4 segments
};
struct ChangePointSums {
  GruGradients gru;
  float *prior_state, *prior_bias, *posterior_state, *initial_state, *prior_of_start;
};
struct ChangePointJob {
  ScanSizes sizes;
  ChangePointRules rules;
  ChangePointInput input;
  ChangePointWeights weights;
  ChangePointOutput output;
  ChangePointGradients gradients;
  ChangePointInputGradients found;
};
struct ChangePointKernel {
  std::int64_t panel;
  std::int64_t (*forward_floats)(const ChangePointJob&, std::int64_t tile);
  void (*forward)(const ChangePointJob&, const ScanTile&, ScanHelper*, float* scratch);
  void (*help)(ScanHelper&);
  std::int64_t (*backward_floats)(const ChangePointJob&, std::int64_t tile);
  void (*backward)(const ChangePointJob&, const ScanTile&, const ChangePointSums&, float* scratch);
};

}  // namespace ahlm
