// The torch-free interface of the scans on a Hopper GPU: plain pointers to float32 arrays on the device, laid
// out as in kernels/change_point_scan/types.py, C-contiguous; a null pointer is an absent tensor.
#pragma once

#include <cstdint>

extern "C" {

struct AhlmCudaScan {
  const float *start, *prior, *posterior;
  const float *gru_input, *gru_state, *gru_input_bias, *gru_state_bias;
  const float *prior_state, *prior_bias, *posterior_state, *initial_state;
  const float* noise;
  const std::int64_t* lengths;
  const std::int64_t* order;  // the videos, the longest first
  const std::uint8_t* forced_changes;
  std::uint8_t* change_points;  // outputs; nothing is written past a video's end
  float *kl_static, *kl_change, *kl_charged, *latent, *belief_mean, *belief_log_std, *state;
  std::int32_t batch, snippets, latent_size, state_size, few;  // few: 1 for clusters of two videos instead of eight
  std::int32_t held, change_prior /* 0 state, 1 constant, 2 full */, transition, uses_state, reset, refractory;
  float belief_weight, evidence_weight, alpha, alpha_down, beta0, beta_low, beta_high;
};

// The snippet scan, as in kernels/snippet_scan/types.py, without prior and KL.
struct AhlmCudaSnippets {
  const float* posterior;
  const float *gru_input, *gru_state, *gru_input_bias, *gru_state_bias, *posterior_state, *initial_state;
  const float* noise;
  const std::uint8_t* change_points;
  const std::int64_t *lengths, *order;
  float *latent, *state;
  std::int32_t batch, snippets, latent_size, state_size, few;
};

// The part of either reverse scan that must run step by step; kernels/cuda.py says what each array is.
struct AhlmCudaReverse {
  const float *gru_input, *gru_state, *posterior_state;
  const std::int64_t *lengths, *order;
  const std::uint8_t* restarts;  // (B, T): d is d0 at this column
  const float *to_candidate, *to_reset, *to_update, *reset, *update;  // (B, T, H)
  const float *into_state, *through_state;                            // (B, T, H)
  const float *belief_terms;                                          // (B, T, 9, Z)
  float *belief_gradient;                                             // (B, T, 2Z)
  float *state_gradient;                                              // (B, T, H)
  std::int32_t batch, snippets, latent_size, state_size, few, transition, after_restart;
};

// What a kernel takes, and how many clusters run at once on the device in use; -1 what cannot be said without a device.
struct AhlmCudaResources {
  std::int32_t registers, local_bytes, shared_bytes, threads, clusters;
};

// Each returns 0 or an error for ahlm_cuda_error. Precision: 32 or 16 (which makes no difference between few and many).
int ahlm_cuda_change_point_scan(const AhlmCudaScan* scan, std::int32_t precision, void* stream);
int ahlm_cuda_snippet_scan(const AhlmCudaSnippets* scan, std::int32_t precision, void* stream);
int ahlm_cuda_reverse(const AhlmCudaReverse* reverse, void* stream);
// Whether the kernels are compiled for the device in use, 1 or 0.
int ahlm_cuda_device_fits(std::int32_t* fits);
// Kernels, each without and with `evidence: transition`: 0 and 1 forward fp32, 2 and 3 the same for few videos a
// cluster, 4 and 5 forward fp16, 6 and 7 reverse, 8 and 9 the same for few videos.
int ahlm_cuda_resources(std::int32_t kernel, AhlmCudaResources* resources);
// 0 fp32, 1 the same for few videos, 2 fp16.
int ahlm_cuda_snippet_resources(std::int32_t kernel, AhlmCudaResources* resources);
const char* ahlm_cuda_error(int error);

}  // extern "C"
