"""The losses: evidence lower bound of DFC (eqs. 2-3), classification of EFC (eqs. 9-12), what DFC teaches EFC."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ahlm.config import ClassifierConfig, DetectorConfig
from ahlm.kernels.padding import real_only, snippet_mask
from ahlm.model.change_point_detection import DetectorOutput
from ahlm.model.classification import ClassifierOutput


class DetectorLoss(NamedTuple):
    """L_DFC and its parts, nats a snippet, means over the videos of a batch."""

    total: Tensor
    reconstruction: Tensor
    snippet_kl: Tensor
    segment_kl: Tensor


class ClassifierLoss(NamedTuple):
    """L_EFC and its parts, means over the videos of a batch."""

    total: Tensor
    foreground: Tensor
    context: Tensor
    background: Tensor


def detector_loss(output: DetectorOutput, lengths: Tensor, config: DetectorConfig, step: int) -> DetectorLoss:
    """L_DFC, the negative evidence lower bound (eqs. 2-3).

        L_ELBO = sum_t  -log N(x_t; g([v1_t; v2_t]), sigma^2) + KL(Q1 || P1) + KL charged by the change-point scan  (2)
        L_DFC  = mean over videos of L_ELBO / length                                                              (3)

    The Gaussian's constant is left out. `step` sets the weight of the KL terms during their warm-up.
    """
    error = (output.target - output.reconstruction).square().sum(-1) / (2 * config.sigma**2)
    real = snippet_mask(lengths, error.shape[1])

    def mean(per_snippet: Tensor) -> Tensor:
        return (real_only(per_snippet, real).sum(1) / lengths).mean()

    def charge(kl: Tensor) -> Tensor:
        return mean((kl - config.free_nats).clamp(min=0) if config.free_nats else kl)

    reconstruction = mean(error)
    snippet_kl, segment_kl = charge(output.snippet_kl), charge(output.scan.kl_charged)
    warmup = min(1.0, (step + 1) / config.kl_warmup) if config.kl_warmup else 1.0
    total = reconstruction + config.kl_weight * warmup * (snippet_kl + segment_kl)
    return DetectorLoss(total, reconstruction, snippet_kl, segment_kl)


def cross_entropy(video_logits: Tensor, labels: Tensor) -> Tensor:
    """L_clf = -mean_b sum_c y_c log p_c with L1-normalised labels (eq. 9); p: softmax of the video logits (eq. 10).

    Args:
        video_logits: (B, C + 1).
        labels: multi-hot (B, C + 1).
    """
    target = labels / labels.sum(-1, keepdim=True)
    return -(target * F.log_softmax(video_logits, dim=-1)).sum(-1).mean()


def classifier_loss(
    output: ClassifierOutput, labels: Tensor, lengths: Tensor, config: ClassifierConfig
) -> ClassifierLoss:
    """L_EFC = L_fg + L_ct + L_bg (eq. 12), eq. 9 with the labels of each branch (eq. 11).

        foreground: [y, 0]    context: [y, 1]    background: [0, 1]

    With non-zero weights ACM-Net's guide, feature-norm and sparsity terms are added (arXiv 2104.02967, section 3.4).

    Args:
        output: of `AttentionClassifier`.
        labels: multi-hot video labels y (B, C).
        lengths: real snippets of each video (B,).
        config: the weights of the terms.
    """
    absent, present = torch.zeros_like(labels[:, :1]), torch.ones_like(labels[:, :1])
    targets = (
        torch.cat([labels, absent], dim=-1),
        torch.cat([labels, present], dim=-1),
        torch.cat([torch.zeros_like(labels), present], dim=-1),
    )
    foreground, context, background = (
        cross_entropy(output.video_logits[:, branch], target) for branch, target in enumerate(targets)
    )
    total = (
        config.foreground_weight * foreground
        + config.context_weight * context
        + config.background_weight * background
        + acm_regularisers(output, lengths, config)
    )
    return ClassifierLoss(total, foreground, context, background)


def segment_loss(
    output: ClassifierOutput, activity: Tensor, labels: Tensor, lengths: Tensor, segments: Tensor
) -> Tensor:
    """What EFC says of a whole segment between change-points, taught to each of its snippets; not in the paper.

    A_s(c) is the mean activity of class c in segment s, 0 for classes that the video does not have. Every snippet t of
    s learns the class c = argmax A_s and how much of the foreground it is, y_t = A_s(c) / max_s' A_s'(c):

        L_seg = mean_t  -y_t (log p_t(c) + log a_t) - (1 - y_t) log(1 - a_t)

    where p is the softmax of the CAS and a the foreground attention. So the segment of the highest such mean is all
    foreground, and so is a video without change-points.

    Args:
        output: of `AttentionClassifier` in training.
        activity: of `AttentionClassifier.activity` (B, T, C), which teaches; no gradient passes through it.
        labels: multi-hot video labels (B, C).
        lengths: real snippets of each video (B,).
        segments: number of the segment that each snippet lies in (B, T).
    """
    real = snippet_mask(lengths, segments.shape[1])
    together = (segments[:, :, None] == segments[:, None, :]) & real[:, None, :]
    mean = together.float() @ (activity * labels[:, None]) / together.sum(-1, keepdim=True).clamp(min=1)
    level, of_class = mean.max(-1)
    highest = mean.amax(1).gather(1, of_class)
    target = level / highest.clamp(min=torch.finfo(level.dtype).tiny)
    log_class = F.log_softmax(output.cas, dim=-1).gather(-1, of_class[..., None])[..., 0]
    attention = output.attention[..., 0].clamp(1e-4, 1 - 1e-4)
    error = -target * (log_class + attention.log()) - (1 - target) * (1 - attention).log()
    return (real_only(error, real).sum(1) / lengths).mean()


def acm_regularisers(output: ClassifierOutput, lengths: Tensor, config: ClassifierConfig) -> Tensor:
    """ACM-Net's guide, feature-norm and sparsity terms, each by its weight; 0 when all weights are."""
    total = output.cas.new_zeros(())
    real = snippet_mask(lengths, output.cas.shape[1])
    foreground = output.attention[..., 0]
    if config.guide_weight:
        # the foreground branch's background probability should be what the foreground attention leaves
        is_background = torch.softmax(output.cas * foreground[..., None], dim=-1)[..., -1]
        guide = ((1 - is_background - foreground.detach()).abs() * real).sum(1).mean()
        total = total + config.guide_weight * guide
    if config.feature_weight:
        total = total + config.feature_weight * feature_norm_loss(output, lengths, config)
    if config.sparsity_weight:
        total = total + config.sparsity_weight * (output.attention[..., :2] * real[..., None]).sum(1).mean()
    return total


def feature_norm_loss(
    output: ClassifierOutput, lengths: Tensor, config: ClassifierConfig, margin: float = 50.0
) -> Tensor:
    """ACM-Net's feature term: norms fall by `margin` from foreground to context to background."""
    divisors = (config.topk_foreground, config.topk_context, config.topk_background)
    real = snippet_mask(lengths, output.cas.shape[1])
    norms = []
    for branch, divisor in enumerate(divisors):
        k = (lengths // divisor).clamp(min=1)
        attention = output.attention[..., branch].masked_fill(~real, -1.0)
        # stable: saturated attention ties, and padding must not decide which snippets are chosen
        rank = attention.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        chosen = (rank < k[:, None])[..., None]
        norms.append(((output.embedding * chosen).sum(1) / k[:, None]).norm(dim=-1))
    foreground, context, background = norms
    gaps = torch.relu(margin - foreground + context) + torch.relu(margin - context + background) + background
    loss: Tensor = gaps.square().mean()
    return loss
