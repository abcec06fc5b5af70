#include "snippet_scan.hpp"

#include <algorithm>

#include "scan.hpp"

namespace ahlm {

#if defined(AHLM_SCAN_PORTABLE)
extern const SnippetKernel snippet_kernel_portable;
#else
extern const SnippetKernel snippet_kernel_v2, snippet_kernel_v3, snippet_kernel_v4;
#endif

namespace {

const SnippetKernel& kernel() {
#if defined(AHLM_SCAN_PORTABLE)
  return snippet_kernel_portable;
#else
  static const SnippetKernel* const kernels[] = {&snippet_kernel_v2, &snippet_kernel_v3, &snippet_kernel_v4};
  return *kernels[scan_instruction_set_index()];
#endif
}

struct Packed {
  PackedGru gru;
  Buffer heads, heads_back, initial_state;
};

SnippetJob make_job(const ScanSizes& s, const SnippetInput& input, const SnippetOutput& output, std::int64_t panel,
                    bool backward, Packed& packed) {
  packed.gru = pack_gru(s, input.gru_input, input.gru_state, input.gru_input_bias, input.gru_state_bias, panel, backward);
  std::vector<float> heads(input.prior_state, input.prior_state + 2 * s.latent * s.state);
  heads.insert(heads.end(), input.posterior_state, input.posterior_state + 2 * s.latent * s.state);
  pack(heads.data(), 4, s.latent, s.latent_pad, s.state, panel, packed.heads);
  if (backward) pack_back(heads.data(), 4, s.latent, s.latent_pad, s.state, panel, packed.heads_back);
  packed.initial_state = pad_segments(input.initial_state, 1, s.state, s.state_row);
  SnippetJob job{};
  job.sizes = s;
  job.input = input;
  job.output = output;
  job.weights = {packed.gru.weights, packed.heads.get(), packed.heads_back.get(), packed.initial_state.get(),
                 4 * s.latent_pad};
  return job;
}

}  // namespace

void snippet_scan(const ScanSizes& sizes, const SnippetInput& input, unsigned n_threads, const SnippetOutput& output) {
  const SnippetKernel& chosen = kernel();
  Packed packed{{}, make_buffer(0), make_buffer(0), make_buffer(0)};
  const SnippetJob job = make_job(sizes, input, output, chosen.panel, false, packed);
  const ScanPlan plan = plan_tiles(input.lengths, sizes, kTile, n_threads);
  run_tiles(plan, n_threads, chosen.forward_floats(job, plan.largest), nullptr,
            [&](const ScanTile& tile, ScanHelper*, float* scratch) { chosen.forward(job, tile, scratch); });
}

void snippet_scan_backward(const ScanSizes& s, const SnippetInput& input, const SnippetOutput& output,
                           const SnippetGradients& gradients, unsigned n_threads, const SnippetInputGradients& found) {
  const SnippetKernel& chosen = kernel();
  Packed packed{{}, make_buffer(0), make_buffer(0), make_buffer(0)};
  SnippetJob job = make_job(s, input, output, chosen.panel, true, packed);
  job.gradients = gradients;
  job.found = found;
  const ScanPlan plan = plan_tiles(input.lengths, s, kTile, kBackwardShare);
  const std::size_t n_groups = std::min(plan.tiles.size(), kBackwardGroups);
  const std::int64_t gates = 3 * s.state_pad, heads = 4 * s.latent_pad;
  const SumPieces sums = make_sums(n_groups, {gates * s.latent_row, gates * s.state_row, s.gate_row, s.gate_row,
                                              heads * s.state_row, s.state_row});
  run_groups(plan, n_groups, n_threads, chosen.backward_floats(job, plan.largest),
             [&](const ScanTile& tile, std::size_t group, float* scratch) {
               const std::vector<float*>& g = sums.groups[group];
               chosen.backward(job, tile, {{g[0], g[1], g[2], g[3]}, g[4], g[5]}, scratch);
             });
  const auto give = [&](std::size_t part, std::int64_t segments, std::int64_t size, std::int64_t pad, std::int64_t row,
                        std::int64_t depth, float* out) {
    unpad_sums(sums.pieces[part], segments, size, pad, row, depth, n_threads, out);
  };
  give(0, 3, s.state, s.state_pad, s.latent_row, s.latent, found.gru_input);
  give(1, 3, s.state, s.state_pad, s.state_row, s.state, found.gru_state);
  give(2, 3, s.state, s.state_pad, 1, 1, found.gru_input_bias);
  give(3, 3, s.state, s.state_pad, 1, 1, found.gru_state_bias);
  std::vector<float> both(static_cast<std::size_t>(4 * s.latent * s.state));
  give(4, 4, s.latent, s.latent_pad, s.state_row, s.state, both.data());
  const auto half = static_cast<std::ptrdiff_t>(both.size() / 2);
  std::copy(both.begin(), both.begin() + half, found.prior_state);
  std::copy(both.begin() + half, both.end(), found.posterior_state);
  give(5, 1, s.state, s.state_pad, 1, 1, found.initial_state);
}

}  // namespace ahlm
