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

  // column 0 is never a change-point, nor is what is past the video's end
  AHLM_DEVICE bool is_real(int column) const { return column > 0 && column < video.length; }
  AHLM_DEVICE bool is_forced(const AhlmCudaScan& job, int column) const {
    return job.forced_changes && is_real(column) && job.forced_changes[video.row + column];
  }
  AHLM_DEVICE bool decide(const AhlmCudaScan& job, int column, const Distances& kl, bool is_forced) {
    const bool is_tested = is_real(column) && waiting == 0;
    bool is_change = is_tested && kl.from_static > beta * kl.from_change;
    if (is_tested) {
      beta += is_change ? job.alpha : -job.alpha_down;
      beta = fminf(fmaxf(beta, job.beta_low), job.beta_high);
    }
    if (job.forced_changes) is_change = is_forced;
    waiting = is_change ? job.refractory : waiting > 0 ? waiting - 1 : 0;
    return is_change;
  }
};

}  // namespace
}  // namespace ahlm::gpu
