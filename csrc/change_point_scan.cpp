#include "change_point_scan.hpp"

#include <algorithm>

#include "scan.hpp"

namespace ahlm {

#if defined(AHLM_SCAN_PORTABLE)
extern const ChangePointKernel change_point_kernel_portable;
#else
extern const ChangePointKernel change_point_kernel_v2, change_point_kernel_v3, change_point_kernel_v4;
#endif

namespace {

const ChangePointKernel& kernel() {
#if defined(AHLM_SCAN_PORTABLE)
  return change_point_kernel_portable;
#else
  static const ChangePointKernel* const kernels[] = {&change_point_kernel_v2, &change_point_kernel_v3,
                                                     &change_point_kernel_v4};
  return *kernels[scan_instruction_set_index()];
#endif
}

struct Packed {
  PackedGru gru;
  Buffer heads, heads_back, prior_bias, initial_state, prior_of_start;
};

// P's rows and then Q's, one after the other as one weight
std::vector<float> stacked_heads(const ScanSizes& s, const ChangePointInput& input) {
  std::vector<float> heads;
  for (const float* weight : {input.prior_state, input.posterior_state})
    if (weight) heads.insert(heads.end(), weight, weight + 2 * s.latent * s.state);
  return heads;
}

ChangePointJob make_job(const ScanSizes& s, const ChangePointRules& rules, const ChangePointInput& input,
                        const ChangePointOutput& output, std::int64_t panel, bool backward, Packed& packed) {
  const std::int64_t segments = 2 * ((input.prior_state != nullptr) + (input.posterior_state != nullptr));
  packed.gru = pack_gru(s, input.gru_input, input.gru_state, input.gru_input_bias, input.gru_state_bias, panel, backward);
  const std::vector<float> heads = stacked_heads(s, input);
  pack(heads.data(), segments, s.latent, s.latent_pad, s.state, panel, packed.heads);
  if (backward) pack_back(heads.data(), segments, s.latent, s.latent_pad, s.state, panel, packed.heads_back);
  packed.initial_state = pad_segments(input.initial_state, 1, s.state, s.state_row);
  if (input.prior_bias)
    packed.prior_bias = pad_segments(input.prior_bias, 2, s.latent, s.latent_pad);
  packed.prior_of_start = make_buffer(2 * s.latent_pad);
  if (input.prior_state)
    for (std::int64_t n = 0; n < 2 * s.latent; ++n) {
      float sum = 0;
      for (std::int64_t k = 0; k < s.state; ++k) sum += input.prior_state[n * s.state + k] * input.initial_state[k];
      packed.prior_of_start[static_cast<std::size_t>(n / s.latent * s.latent_pad + n % s.latent)] = sum;
    }
  ChangePointJob job{};
  job.sizes = s;
  job.rules = rules;
  job.input = input;
  job.output = output;
  job.weights = {packed.gru.weights,         packed.heads.get(),          packed.heads_back.get(),
                 packed.prior_bias.get(),    packed.initial_state.get(),  packed.prior_of_start.get(),
                 segments,                   segments * s.latent_pad};
  return job;
}

}  // namespace

void change_point_scan(const ScanSizes& sizes, const ChangePointRules& rules, const ChangePointInput& input,
                       unsigned n_threads, const ChangePointOutput& output) {
  const ChangePointKernel& chosen = kernel();
  Packed packed{{}, make_buffer(0), make_buffer(0), make_buffer(0), make_buffer(0), make_buffer(0)};
  const ChangePointJob job = make_job(sizes, rules, input, output, chosen.panel, false, packed);
  const ScanPlan plan = plan_tiles(input.lengths, sizes, kTile, n_threads);
  const bool is_wide = 3 * sizes.state * (sizes.state + sizes.latent) >= kHelpFrom;
  run_tiles(plan, n_threads, chosen.forward_floats(job, plan.largest), is_wide ? chosen.help : nullptr,
            [&](const ScanTile& tile, ScanHelper* helper, float* scratch) { chosen.forward(job, tile, helper, scratch); });
}

void change_point_scan_backward(const ScanSizes& s, const ChangePointRules& rules, const ChangePointInput& input,
                                const ChangePointOutput& output, const ChangePointGradients& gradients,
                                unsigned n_threads, const ChangePointInputGradients& found) {
  const ChangePointKernel& chosen = kernel();
  Packed packed{{}, make_buffer(0), make_buffer(0), make_buffer(0), make_buffer(0), make_buffer(0)};
  ChangePointJob job = make_job(s, rules, input, output, chosen.panel, true, packed);
  job.gradients = gradients;
  job.found = found;
  const ScanPlan plan = plan_tiles(input.lengths, s, kTile, kBackwardShare);
  const std::size_t n_groups = std::min(plan.tiles.size(), kBackwardGroups);
  const std::int64_t gates = 3 * s.state_pad, heads = 2 * s.latent_pad;
  const SumPieces sums = make_sums(n_groups, {gates * s.latent_row, gates * s.state_row, s.gate_row, s.gate_row,
                                              heads * s.state_row, heads, heads * s.state_row, s.state_row,
                                              heads});
  run_groups(plan, n_groups, n_threads, chosen.backward_floats(job, plan.largest),
             [&](const ScanTile& tile, std::size_t group, float* scratch) {
               const std::vector<float*>& g = sums.groups[group];
               chosen.backward(job, tile, {{g[0], g[1], g[2], g[3]}, g[4], g[5], g[6], g[7], g[8]}, scratch);
             });
  const auto give = [&](std::size_t part, std::int64_t segments, std::int64_t size, std::int64_t pad, std::int64_t row,
                        std::int64_t depth, float* out) {
    if (out) unpad_sums(sums.pieces[part], segments, size, pad, row, depth, n_threads, out);
  };
  give(0, 3, s.state, s.state_pad, s.latent_row, s.latent, found.gru_input);
  give(1, 3, s.state, s.state_pad, s.state_row, s.state, found.gru_state);
  give(2, 3, s.state, s.state_pad, 1, 1, found.gru_input_bias);
  give(3, 3, s.state, s.state_pad, 1, 1, found.gru_state_bias);
  give(4, 2, s.latent, s.latent_pad, s.state_row, s.state, found.prior_state);
  give(5, 2, s.latent, s.latent_pad, 1, 1, found.prior_bias);
  give(6, 2, s.latent, s.latent_pad, s.state_row, s.state, found.posterior_state);
  give(7, 1, s.state, s.state_pad, 1, 1, found.initial_state);
  if (rules.held) return;
  std::vector<float> to_prior_of_start(static_cast<std::size_t>(2 * s.latent));
  give(8, 2, s.latent, s.latent_pad, 1, 1, to_prior_of_start.data());
  for (std::int64_t n = 0; n < 2 * s.latent; ++n)
    for (std::int64_t k = 0; k < s.state; ++k) {
      const float gradient = to_prior_of_start[static_cast<std::size_t>(n)];
      found.prior_state[n * s.state + k] += gradient * input.initial_state[k];
      found.initial_state[k] += gradient * input.prior_state[n * s.state + k];
    }
}

}  // namespace ahlm
