// The snippet scan (level 1) on clusters of 8 blocks: the sequential part, which is head Q1, the draw and the GRU.
// Prior and KL need no order and are matrix products outside; the reverse is that of change_point_scan.cu. Units,
// latents and rounds are dealt out as there.
#include "scan.hpp"

namespace ahlm::gpu {
namespace {

template <int kH, typename Number, bool kFew>
AHLM_KERNEL(kH) scan_snippets(const AhlmCudaSnippets job) {
  using Shared = ForwardShared<kH, Number, false, kFew>;
  using Math = Numbers<sizeof(Number) == 2>;
  constexpr int kWarps = kH / 32;
  Shared& shared = shared_memory<Shared>();
  const int lane = thread_index() % 32, warp = thread_index() / 32, rank = cluster_rank();
  const int pair = 2 * (lane % 4), latents = job.latent_size;
  const Number number{};

  const int unit = rank * (kH / kRanks) + 4 * warp + lane / 4 % 4, z = rank * kOwnLatents + lane / 4;
  const Video moved = video_at(job, pair + lane / 16);
  const Video drawn[2] = {video_at(job, pair), video_at(job, pair + 1)};
  const int length = video_at(job, 0).length;  // the first is the longest

  typename Shared::Weights weights;
  weights.load({job.gru_state, job.gru_input, {job.posterior_state, nullptr}, latents}, shared.weights, warp, lane);
  const Unit own = unit_at(job, unit);
  open_scan<kH>(shared, job.initial_state, number);

  struct Column {
    Gauss pre;
    float noise;
  };
  const auto column_at = [&](int j, int t) -> Column {
    if (t >= drawn[j].length || z >= latents) return {};
    const int row = drawn[j].row + t;
    return {stream_at(job.posterior, row, latents, z), job.noise[at(row, latents, z)]};
  };
  Column upcoming[2];
  if (warp == 0)
    for (int j = 0; j < 2; ++j) upcoming[j] = column_at(j, 0);
  // as loaded, a step ahead: whoever makes it a bool waits for it
  std::uint8_t is_change = moved.length > 0 ? job.change_points[moved.row] : std::uint8_t{0};
  float d = own.start, tile[4], heads[1][4];
  for (int t = 0;; ++t) {
    const int buffer = (t + 1) % 2;
    if (t > 0) receive(kState, &shared.state_box[buffer], (t - 1) / 2, Shared::kStateBytes);
    if (t < moved.length) job.state[at(moved.row + t, kH, unit)] = d;
    multiply_heads(shared, weights, shared.state[buffer], warp, lane, kWarps, heads);
    if (warp == 0) {
      Share shares[2];
      AHLM_UNROLL
      for (int j = 0; j < 2; ++j) {
        const Gauss posterior = clamped(sum(upcoming[j].pre, {heads[0][j], heads[0][2 + j]}));
        const float v = posterior.mean + Math::exp(posterior.log_std) * upcoming[j].noise;
        shares[j] = {{v, v}, {}};
        if (t < drawn[j].length && z < latents) job.latent[at(drawn[j].row + t, latents, z)] = v;
        upcoming[j] = column_at(j, t + 1);
      }
      if (t + 1 < length) publish(shared, lane, shares, number);
    }
    if (t + 1 >= length) break;
    weights.of_state(shared.weights, shared.state[buffer], warp, lane, tile);
    const Gates gates = own_gates(tile, lane < 16);
    receive(kLatents, &shared.latent_box[0], t, Shared::kLatentBytes);
    weights.of_latent(shared.weights, shared.messages, 0, warp, lane, tile);
    d = next_state<Math>(own_gates(tile, lane < 16), gates, own, d);
    if (is_change != 0) d = own.start;
    if (t + 1 < moved.length) is_change = job.change_points[moved.row + t + 1];
    send_state<kH>(shared, t % 2, warp, lane, converted(d, number));
  }
  cluster_barrier();
}

template <int kH, typename Use>
int with_kernel(int precision, bool few, Use use) {
  if (precision == 16) return use(scan_snippets<kH, Half, false>, kH, sizeof(ForwardShared<kH, Half, false, false>));
  return few ? use(scan_snippets<kH, float, true>, kH, sizeof(ForwardShared<kH, float, false, true>))
             : use(scan_snippets<kH, float, false>, kH, sizeof(ForwardShared<kH, float, false, false>));
}

}  // namespace
}  // namespace ahlm::gpu

extern "C" {

using namespace ahlm::gpu;

int ahlm_cuda_snippet_scan(const AhlmCudaSnippets* scan, std::int32_t precision, void* stream) {
  if (scan->latent_size > kMostLatents || (precision != 32 && precision != 16)) return kNoKernel;
  const auto use = [=](auto kernel, int threads, std::size_t shared) {
    return launch(kernel, *scan, threads, shared, stream);
  };
  if (scan->state_size == 256) return with_kernel<256>(precision, scan->few, use);
#ifdef AHLM_EMULATE
  if (scan->state_size == 64) return with_kernel<64>(precision, scan->few, use);
#endif
  return kNoKernel;
}

#ifndef AHLM_EMULATE
int ahlm_cuda_snippet_resources(std::int32_t kernel, AhlmCudaResources* resources) {
  if (kernel < 0 || kernel > 2) return kNoKernel;
  return with_kernel<256>(kernel < 2 ? 32 : 16, kernel == 1, [=](auto function, int threads, std::size_t shared) {
    return measure(function, threads, shared, resources);
  });
}
#endif

}  // extern "C"
