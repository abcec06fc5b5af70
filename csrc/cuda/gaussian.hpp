// Diagonal Gaussians, one dimension at a time; kernels/gaussian.py says what is meant.
#pragma once

#include "hardware.hpp"

namespace ahlm::gpu {

struct Gauss {
  float mean, log_std;
};

// kFast takes the hardware's approximations (2 to 4 units in the last place of values near 1)
template <bool kFast>
struct Numbers {
  AHLM_DEVICE static float exp(float x) { return kFast ? fast_exp(x) : expf(x); }
  AHLM_DEVICE static float log(float x) { return kFast ? fast_log(x) : logf(x); }
  AHLM_DEVICE static float divide(float x, float y) { return kFast ? fast_divide(x, y) : x / y; }
  AHLM_DEVICE static float sigmoid(float x) { return divide(1.0f, 1.0f + exp(-x)); }
  AHLM_DEVICE static float tanh(float x) { return 2.0f * sigmoid(2.0f * x) - 1.0f; }
  // exp(x) - 1 - x, to the last digits also where x is small: there it is the Taylor series
  AHLM_DEVICE static float excess(float x) {
    float sum = 1.0f / 39916800.0f;
    sum = sum * x + 1.0f / 3628800.0f;
    sum = sum * x + 1.0f / 362880.0f;
    sum = sum * x + 1.0f / 40320.0f;
    sum = sum * x + 1.0f / 5040.0f;
    sum = sum * x + 1.0f / 720.0f;
    sum = sum * x + 1.0f / 120.0f;
    sum = sum * x + 1.0f / 24.0f;
    sum = sum * x + 1.0f / 6.0f;
    sum = sum * x + 0.5f;
    const float near = sum * x * x, far = exp(x) - 1.0f - x;  // both, without a branch: KLs then run side by side
    return fabsf(x) < 1.0f ? near : far;
  }
  // KL(q || p) of one dimension, in nats
  AHLM_DEVICE static float kl(const Gauss& q, const Gauss& p) {
    const float distance = q.mean - p.mean;
    return 0.5f * (excess(2.0f * (q.log_std - p.log_std)) + distance * distance * exp(-2.0f * p.log_std));
  }
  // eq. 6
  AHLM_DEVICE static Gauss fuse(const Gauss& belief, const Gauss& evidence, float belief_weight,
                                float evidence_weight) {
    const float from_belief = belief_weight * exp(-2.0f * belief.log_std);
    const float from_evidence = evidence_weight * exp(-2.0f * evidence.log_std);
    const float precision = from_belief + from_evidence;
    const float mean = divide(from_belief * belief.mean + from_evidence * evidence.mean, precision);
    return {mean, -0.5f * log(precision)};
  }
};

// comparisons are written so that NaN passes
AHLM_DEVICE Gauss clamped(const Gauss& pre) {
  const float raised = pre.log_std < -5.0f ? -5.0f : pre.log_std;
  return {pre.mean, raised > 2.0f ? 2.0f : raised};
}
AHLM_DEVICE Gauss sum(const Gauss& a, const Gauss& b) { return {a.mean + b.mean, a.log_std + b.log_std}; }
AHLM_DEVICE Gauss pick(bool first, const Gauss& a, const Gauss& b) {
  return {first ? a.mean : b.mean, first ? a.log_std : b.log_std};
}

}  // namespace ahlm::gpu
