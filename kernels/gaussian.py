"""Diagonal Gaussians: the heads' outputs, their KL divergence, the filter of belief and evidence."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

LOG_STD_RANGE = (-5.0, 2.0)


class Gaussian(NamedTuple):
    """Mean and log standard deviation of independent dimensions, (..., Z) each."""

    mean: Tensor
    log_std: Tensor


def split(pre_activation: Tensor) -> Gaussian:
    """The Gaussian of a head's output (..., 2Z): mean, then log standard deviation clamped to [-5, 2]."""
    mean, log_std = pre_activation.chunk(2, dim=-1)
    return Gaussian(mean, log_std.clamp(*LOG_STD_RANGE))


def add(*gaussians: Gaussian) -> Gaussian:
    """Sum of gradients with respect to one Gaussian."""
    return Gaussian(*(torch.stack(parts).sum(0) for parts in zip(*gaussians, strict=True)))


def kl(q: Gaussian, p: Gaussian) -> Tensor:
    """KL(q || p) in nats, summed over the last dimension.

    Written with expm1, because the textbook form cancels where q is close to p, which is where eq. 7 is delicate.
    """
    log_ratio = 2 * (q.log_std - p.log_std)
    terms = torch.expm1(log_ratio) - log_ratio + (q.mean - p.mean).square() * torch.exp(-2 * p.log_std)
    return 0.5 * terms.sum(-1)


def fuse(belief: Gaussian, evidence: Gaussian, belief_weight: float, evidence_weight: float) -> Gaussian:
    """What q is in the filtered reading: precisions add.

    `L_q = rho L_b + kappa L_e` and `L_q m_q = rho L_b m_b + kappa L_e m_e` for belief b and evidence e.
    """
    belief_precision = belief_weight * torch.exp(-2 * belief.log_std)
    evidence_precision = evidence_weight * torch.exp(-2 * evidence.log_std)
    precision = belief_precision + evidence_precision
    mean = (belief_precision * belief.mean + evidence_precision * evidence.mean) / precision
    return Gaussian(mean, -0.5 * torch.log(precision))


def split_backward(pre_activation: Tensor, gradient: Gaussian) -> Tensor:
    """Gradient of `split` with respect to its input (..., 2Z); none where the clamp holds."""
    _, raw = pre_activation.chunk(2, dim=-1)
    inside = (raw >= LOG_STD_RANGE[0]) & (raw <= LOG_STD_RANGE[1])
    return torch.cat([gradient.mean, gradient.log_std * inside], dim=-1)


def kl_backward(q: Gaussian, p: Gaussian, gradient: Tensor) -> tuple[Gaussian, Gaussian]:
    """Gradients of `kl` with respect to q and p, given that of its result (...)."""
    gradient = gradient[..., None]
    excess = torch.expm1(2 * (q.log_std - p.log_std))
    distance = q.mean - p.mean
    slope = distance * torch.exp(-2 * p.log_std)
    return (
        Gaussian(gradient * slope, gradient * excess),
        Gaussian(-gradient * slope, -gradient * (excess + distance * slope)),
    )


def fuse_backward(
    belief: Gaussian, evidence: Gaussian, belief_weight: float, evidence_weight: float, gradient: Gaussian
) -> tuple[Gaussian, Gaussian]:
    """Gradients of `fuse` with respect to belief and evidence, given that of its result."""
    belief_precision = belief_weight * torch.exp(-2 * belief.log_std)
    evidence_precision = evidence_weight * torch.exp(-2 * evidence.log_std)
    share = belief_precision / (belief_precision + evidence_precision)
    rest = evidence_precision / (belief_precision + evidence_precision)
    # d mean / d log_std: a less certain side pulls less; its distance to the mean is that to the other side, shared
    pull = 2 * share * rest * (belief.mean - evidence.mean) * gradient.mean
    return (
        Gaussian(share * gradient.mean, share * gradient.log_std - pull),
        Gaussian(rest * gradient.mean, rest * gradient.log_std + pull),
    )
