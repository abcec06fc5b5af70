// What the forward kernels of the change-point scan share: columns of the streams, the decision, the results' places.
#pragma once

#include "scan.hpp"

namespace ahlm::gpu {
namespace {

// What a latent dimension of a video needs of the streams for the step from column t to t + 1.
struct Column {
  Gauss start, posterior, prior;
  float noise;
};
AHLM_DEVICE Column column_at(const AhlmCudaScan& job, const Video& video, int t, int z) {
  if (t + 1 >= video.length || z >= job.latent_size) return {};
  const int row = video.row + t;
  return {stream_at(job.start, row + 1, job.latent_size, z), stream_at(job.posterior, row + 1, job.latent_size, z),
          stream_at(job.prior, row, job.latent_size, z), job.noise ? job.noise[at(row + 1, job.latent_size, z)] : 0.0f};
}
AHLM_DEVICE void write_latent(const AhlmCudaScan& job, int row, int z, float latent, const Gauss& belief) {
  const std::size_t place = at(row, job.latent_size, z);
  job.latent[place] = latent;
  job.belief_mean[place] = belief.mean;
  job.belief_log_std[place] = belief.log_std;
}

// A step of one latent dimension of one video, eqs. 4-6: what either decision would make of it.
template <typename Math>
struct Outcomes {
  Gauss fused, fresh;  // belief without and with a change
  Share share;

  // from the evidence `e`: all that does not need d'
  AHLM_DEVICE void filter(const AhlmCudaScan& job, const Column& column, const Gauss& e, const Gauss& belief,
                          const Gauss& prior_of_state, bool is_latent) {
    const Gauss p_static = job.held ? belief : clamped(sum(column.prior, prior_of_state));
    fused = Math::fuse(belief, e, job.belief_weight, job.evidence_weight);
    fresh = pick(job.reset, clamped(column.start), e);
    const float distance = Math::kl(fused, p_static);
    share.kl[0] = is_latent ? distance : 0.0f;
    share.latent[0] = fused.mean + Math::exp(fused.log_std) * column.noise;
    share.latent[1] = fresh.mean + Math::exp(fresh.log_std) * column.noise;
  }
  // from the prior's head at d'
  AHLM_DEVICE void compare(const AhlmCudaScan& job, const Column& column, const Gauss& bias,
                           const Gauss& prior_of_state, bool is_latent) {
    const Gauss offset = job.change_prior == 2 ? column.prior : bias;
    const Gauss p_change = clamped(job.change_prior == 1 ? offset : sum(offset, prior_of_state));
    const float distances[2] = {Math::kl(fused, p_change), Math::kl(fresh, p_change)};
    share.kl[1] = is_latent ? distances[0] : 0.0f;
    share.kl[2] = is_latent ? distances[1] : 0.0f;
  }
};

// Sums over all latent dimensions.
struct Distances {
  float from_static, from_change, charged;  // of the filtered belief, twice; of the belief after a change
};
AHLM_DEVICE void write_decision(const AhlmCudaScan& job, int row, bool is_change, const Distances& kl, float charged) {
  job.change_points[row] = is_change;
  job.kl_static[row] = kl.from_static;
  job.kl_change[row] = kl.from_change;
  job.kl_charged[row] = charged;
}

// Eqs. 7-8 of one video. Every warp that needs the decision takes it for itself, from the same numbers.
struct Judge {
  Video video;
  float beta;
  int waiting = 0;  // steps left without a test
  std::uint8_t forced = 0;

  // column 0 is never a change-point, nor is what is past the video's end
  AHLM_DEVICE bool is_real(int column) const { return column > 0 && column < video.length; }
  // a step before the column's decision, or its load would be waited for
  AHLM_DEVICE void read_forced(const AhlmCudaScan& job, int column) {
    if (job.forced_changes) forced = is_real(column) ? job.forced_changes[video.row + column] : std::uint8_t{0};
  }
  AHLM_DEVICE bool decide(const AhlmCudaScan& job, int column, const Distances& kl) {
    const bool is_tested = is_real(column) && waiting == 0;
    bool is_change = is_tested && kl.from_static > beta * kl.from_change;
    if (is_tested) {
      beta += is_change ? job.alpha : -job.alpha_down;
      beta = fminf(fmaxf(beta, job.beta_low), job.beta_high);
    }
    if (job.forced_changes) is_change = forced != 0;
    waiting = is_change ? job.refractory : waiting > 0 ? waiting - 1 : 0;
    return is_change;
  }
};

}  // namespace
}  // namespace ahlm::gpu
