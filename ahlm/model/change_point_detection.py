"""DFC, the change-point detection module (section 3.2): a two-level latent model whose upper level finds change-points.

The generative model (eq. 1) decodes each snippet from its own latent and from the latent of the slower level,

    p(x_1..T, v1, v2) = prod_t p(x_t | v1_t, v2_t) p(v1_t | x_<t, v2_t) p(v2_t | x_<t, v2_<t),

where v2 keeps its Gaussian until the test of eq. 7 finds a change-point: time as the upper level feels it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ahlm.config import DetectorConfig
from ahlm.kernels.change_point_scan import ScanOutput, ScanRules, ScanStreams, ScanWeights, change_point_scan
from ahlm.kernels.compiled import promoted
from ahlm.kernels.gaussian import kl, split
from ahlm.kernels.padding import real_only, snippet_mask
from ahlm.kernels.snippet_scan import SnippetWeights, snippet_scan

SIMPLE_LATENT_SIZE = 32  # `level1: simple` is the small model that the measurements of the method used


class Levels(NamedTuple):
    """Features of both levels of the hierarchy, (B, T, width) each.

    Attributes:
        f1, f2: bottom-up features of the H-Encoder.
        u1, u2: top-down features of the H-Decoder; u1 is none where level 1 does not use it.
    """

    f1: Tensor
    f2: Tensor
    u1: Tensor | None
    u2: Tensor


class DetectorOutput(NamedTuple):
    """What a training step of DFC needs.

    Attributes:
        scan: result of the level-2 scan.
        snippet_kl: KL(Q1 || P1) of level 1 (B, T), 0 at padding.
        target: standardised features (B, T, F); with `standardise: slow` F is `slow_size` here.
        reconstruction: mean of p(x_t | v1_t, v2_t), same shape.
    """

    scan: ScanOutput
    snippet_kl: Tensor
    target: Tensor
    reconstruction: Tensor


class Noise(NamedTuple):
    """Standard normal draws for the latents, so that a step can be repeated: (B, T, Z1) and (B, T, Z)."""

    snippet: Tensor
    segment: Tensor


class StateTransition(nn.Module):
    """Weights of one GRU cell and its learned start d0 (`f_tran` of section 3.2)."""

    def __init__(self, input_size: int, state_size: int) -> None:
        super().__init__()
        self.cell = nn.GRUCell(input_size, state_size)
        self.initial_state = nn.Parameter(torch.zeros(state_size))

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Input and state weights, input and state biases, as the scans take them."""
        return self.cell.weight_ih, self.cell.weight_hh, self.cell.bias_ih, self.cell.bias_hh


def safe_scale(deviation: Tensor) -> Tensor:
    """What to divide features by (F,): a constant dimension carries nothing and must not be blown up."""
    return torch.where(deviation > 0, deviation + 1e-3 * deviation.mean(), 1.0)


class ChangePointDetector(nn.Module):
    """H-Encoder, H-Decoder, the heads of both levels and the scans (section 3.2)."""

    feature_mean: Tensor
    feature_scale: Tensor
    feature_projection: Tensor

    def __init__(self, feature_dim: int, config: DetectorConfig) -> None:
        super().__init__()
        self.config = config
        self.rules = ScanRules(**{name: getattr(config, name) for name in ScanRules._fields})
        width, state, z = config.width, config.state_size, config.latent_size
        self.register_buffer("feature_mean", torch.zeros(feature_dim))
        if config.standardise == "slow":
            self.register_buffer("feature_projection", torch.zeros(feature_dim, config.slow_size))
            feature_dim = config.slow_size
        else:
            self.register_buffer("feature_scale", torch.ones(feature_dim))

        self.encoder1, self.encoder2 = nn.Linear(feature_dim, width), nn.Linear(width, width)
        self.decoder2 = nn.Linear(width, width)

        self.transition = StateTransition(z, state)
        self.posterior_features = nn.Linear(width, 2 * z)
        self.posterior_context = nn.Linear(width, 2 * z, bias=False)
        self.posterior_state = nn.Linear(state, 2 * z, bias=False)
        rules = self.rules
        self.prior_features = nn.Linear(width, 2 * z, bias=False) if rules.uses_prior else None
        self.prior_context = nn.Linear(width, 2 * z, bias=False) if rules.uses_prior else None
        self.prior_state = nn.Linear(state, 2 * z, bias=False) if rules.uses_prior_state else None
        self.prior_bias = nn.Parameter(torch.zeros(2 * z))

        if config.level1 == "gru":
            z1 = config.snippet_latent_size
            self.decoder1 = nn.Linear(width, width)
            self.snippet_transition = StateTransition(z1, state)
            self.snippet_prior = nn.Linear(2 * width + z, 2 * z1)
            self.snippet_posterior = nn.Linear(2 * width + z, 2 * z1)
            self.snippet_prior_state = nn.Linear(state, 2 * z1, bias=False)
            self.snippet_posterior_state = nn.Linear(state, 2 * z1, bias=False)
        else:
            z1 = SIMPLE_LATENT_SIZE
            self.snippet_prior = nn.Linear(z, 2 * z1)
            self.snippet_posterior = nn.Linear(width, 2 * z1)
        self.snippet_latent_size = z1
        self.reconstruction = nn.Sequential(nn.Linear(z1 + z, width), nn.ReLU(), nn.Linear(width, feature_dim))

    @property
    def lead(self) -> float:
        """Snippets by which change-points come before boundaries: to level 2, t is a mean of `look_ahead` snippets."""
        return (self.config.look_ahead - 1) / 2

    def standardise(self, features: Tensor) -> Tensor:
        """Features by the training statistics that `set_statistics` or `set_projection` stored."""
        if self.config.standardise == "slow":
            return (features - self.feature_mean) @ self.feature_projection
        return (features - self.feature_mean) / self.feature_scale

    def set_statistics(self, mean: Tensor, deviation: Tensor) -> None:
        """Store the training set's mean and deviation (F,), per dimension or pooled into one global deviation."""
        if self.config.standardise == "global":
            deviation = deviation.square().mean().sqrt().expand_as(deviation)
        self.feature_mean.copy_(mean)
        self.feature_scale.copy_(safe_scale(deviation))

    def set_projection(self, mean: Tensor, projection: Tensor) -> None:
        """Store the training set's mean (F,) and slow projection (F, slow_size)."""
        self.feature_mean.copy_(mean)
        self.feature_projection.copy_(projection)

    def levels(self, target: Tensor, lengths: Tensor) -> Levels:
        """H-Encoder `f1 = relu(W x), f2 = relu(W f1)` and H-Decoder `u2 = relu(W f2), u1 = relu(W u2)`."""
        f1 = torch.relu(self.encoder1(target))
        f2 = torch.relu(self.encoder2(self._look_ahead(f1, lengths)))
        u2 = torch.relu(self.decoder2(f2))
        u1 = torch.relu(self.decoder1(u2)) if self.config.level1 == "gru" else None
        return Levels(f1, f2, u1, u2)

    def _look_ahead(self, f1: Tensor, lengths: Tensor) -> Tensor:
        """Mean of f1 over the snippets t .. t + look_ahead - 1, cut at the video's end."""
        if self.config.look_ahead == 1:
            return f1
        real = snippet_mask(lengths, f1.shape[1])
        f1, count = real_only(f1, real), real[..., None].to(f1.dtype)
        total, ones = f1, count
        for ahead in range(1, min(self.config.look_ahead, f1.shape[1])):
            total = total + nn.functional.pad(f1[:, ahead:], (0, 0, 0, ahead))
            count = count + nn.functional.pad(ones[:, ahead:], (0, 0, 0, ahead))
        return total / count.clamp(min=1)

    def streams(self, levels: Levels) -> tuple[ScanStreams, ScanWeights]:
        """All that the heads of level 2 owe to f and u, one matrix product a head for all snippets and videos."""
        # in 16 bits the heads' rounding alone decides eq. 7
        with torch.autocast(levels.f2.device.type, enabled=False):
            return self._streams(promoted(levels.f2), promoted(levels.u2))

    def _streams(self, f2: Tensor, u2: Tensor) -> tuple[ScanStreams, ScanWeights]:
        rules, d0 = self.rules, self.transition.initial_state
        from_features = self.posterior_features(f2)
        from_context = self.posterior_context(u2)
        start = self._posterior(from_features + from_context + self.posterior_state(d0))
        # eq. 6 as written mixes the new f with the old u
        posterior = None
        if rules.uses_posterior:
            posterior = self._posterior(from_features + nn.functional.pad(from_context[:, :-1], (0, 0, 1, 0)))
        prior = None
        if self.prior_features is not None and self.prior_context is not None:
            prior = self.prior_features(f2) + self.prior_context(u2) + self.prior_bias
        posterior_state = self.posterior_state.weight
        if self.config.posterior_width == "shared":
            z = self.config.latent_size
            posterior_state = nn.functional.pad(posterior_state[:z], (0, 0, 0, z))
        weights = ScanWeights(
            *self.transition.tensors(),
            prior_state=None if self.prior_state is None else self.prior_state.weight,
            prior_bias=None if rules.change_prior == "full" else self.prior_bias,
            posterior_state=posterior_state if rules.uses_posterior else None,
            initial_state=d0,
        )
        return ScanStreams(start, prior, posterior), weights

    def _posterior(self, stream: Tensor) -> Tensor:
        """Head Q's pre-activations (B, T, 2Z) as `posterior_width` has them.

        A width of its own lets a snippet hide its change: Q grows wide exactly where the features move.
        """
        if self.config.posterior_width == "per_snippet":
            return stream
        z = self.config.latent_size
        return torch.cat([stream[..., :z], self.posterior_features.bias[z:].expand_as(stream[..., z:])], dim=-1)

    def scan(
        self,
        features: Tensor,
        lengths: Tensor,
        forced_changes: Tensor | None = None,
    ) -> ScanOutput:
        """Find change-points in padded videos (eqs. 4-8); latents are the beliefs' means, as at test time.

        Args:
            features: snippet features (B, T, F).
            lengths: real snippets of each video (B,).
            forced_changes: change-points that decide instead of eq. 7 (B, T) bool; column 0 is ignored.
        """
        streams, weights = self.streams(self.levels(self.standardise(features), lengths))
        return change_point_scan(streams, weights, self.rules, lengths=lengths, forced_changes=forced_changes)

    def draw_noise(self, batch: int, n_snippets: int, generator: torch.Generator) -> Noise:
        """Noise for one training step, drawn on the generator's device."""
        sizes = (self.snippet_latent_size, self.config.latent_size)
        return Noise(
            *(torch.randn(batch, n_snippets, size, generator=generator, device=generator.device) for size in sizes)
        )

    def forward(
        self, features: Tensor, lengths: Tensor, noise: Noise, forced_changes: Tensor | None = None
    ) -> DetectorOutput:
        """Both levels on a batch of crops, for the loss (eqs. 2-3).

        Args:
            features: snippet features (B, T, F).
            lengths: real snippets of each crop (B,).
            noise: draws for both latents, see `draw_noise`.
            forced_changes: see `scan`.
        """
        target = real_only(self.standardise(features), snippet_mask(lengths, features.shape[1]))
        levels = self.levels(target, lengths)
        streams, weights = self.streams(levels)
        scan = change_point_scan(
            streams, weights, self.rules, noise=noise.segment, lengths=lengths, forced_changes=forced_changes
        )
        segment_latent = self.decoded_latent(scan)
        snippet_latent, snippet_kl = self.snippet_level(levels, segment_latent, scan.change_points, lengths, noise)
        reconstruction = self.reconstruction(torch.cat([snippet_latent, segment_latent], dim=-1))
        # a shared embedding must not be trained to be easy to decode
        return DetectorOutput(scan, snippet_kl, target.detach(), reconstruction)

    def decoded_latent(self, scan: ScanOutput) -> Tensor:
        """The v2 that snippet t is decoded from (B, T, Z): its own, or that of the last change-point."""
        if self.config.decode == "current":
            return scan.latent
        steps = torch.arange(scan.latent.shape[1], device=scan.latent.device)
        last_change = torch.where(scan.change_points, steps, 0).cummax(dim=1).values
        return scan.latent.gather(1, last_change[..., None].expand_as(scan.latent))

    def snippet_level(
        self, levels: Levels, segment_latent: Tensor, change_points: Tensor, lengths: Tensor, noise: Noise
    ) -> tuple[Tensor, Tensor]:
        """Level 1: latent v1 (B, T, Z1) and KL(Q1 || P1) (B, T).

        `gru`: prior P1(f1_{t-1}, d1_t, u1_{t-w}, v2_t), posterior Q1(f1_t, d1_t, u1_{t-w}, v2_t) with w of
        `look_ahead`, so the prior sees x_t through v2_t only; d1 starts afresh right after each change-point. `simple`:
        P1(v2_t), Q1(f1_t).
        """
        if levels.u1 is None:
            posterior = split(promoted(self.snippet_posterior(levels.f1)))
            prior = split(promoted(self.snippet_prior(segment_latent)))
            real = snippet_mask(lengths, segment_latent.shape[1])
            return posterior.mean + posterior.log_std.exp() * noise.snippet, kl(posterior, prior) * real
        before_f1 = nn.functional.pad(levels.f1[:, :-1], (0, 0, 1, 0))
        before_u1 = nn.functional.pad(levels.u1, (0, 0, self.config.look_ahead, 0))[:, : levels.u1.shape[1]]
        prior_stream = self.snippet_prior(torch.cat([before_f1, before_u1, segment_latent], dim=-1))
        posterior_stream = self.snippet_posterior(torch.cat([levels.f1, before_u1, segment_latent], dim=-1))
        weights = SnippetWeights(
            *self.snippet_transition.tensors(),
            prior_state=self.snippet_prior_state.weight,
            posterior_state=self.snippet_posterior_state.weight,
            initial_state=self.snippet_transition.initial_state,
        )
        output = snippet_scan(
            prior_stream, posterior_stream, weights, noise=noise.snippet, change_points=change_points, lengths=lengths
        )
        return output.latent, output.kl
