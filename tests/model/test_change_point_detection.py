from __future__ import annotations

import itertools

import pytest
import torch

from ahlm.config import ClassifierConfig, DetectorConfig
from ahlm.model.ahlm import AHLM
from ahlm.model.change_point_detection import ChangePointDetector, Noise
from ahlm.model.losses import detector_loss

SMALL = {"width": 12, "state_size": 10, "latent_size": 6, "snippet_latent_size": 5}
LITERAL = {
    "static_belief": "prior",
    "change_prior": "full",
    "evidence": "transition",
    "belief_weight": 0.0,
    "evidence_weight": 1.0,
    "decode": "segment",
}


def detector(**config: object) -> ChangePointDetector:
    torch.manual_seed(0)
    return ChangePointDetector(7, DetectorConfig(**(SMALL | config)))  # type: ignore[arg-type]


def noise_for(model: ChangePointDetector, batch: int, n_snippets: int) -> Noise:
    return model.draw_noise(batch, n_snippets, torch.Generator().manual_seed(5))


def every_reading() -> list[dict[str, object]]:
    fields = itertools.product(("held", "prior"), ("state", "constant", "full"), ("start", "transition"))
    return [dict(zip(("static_belief", "change_prior", "evidence"), values, strict=True)) for values in fields]


@pytest.mark.parametrize("level1", ["gru", "simple"])
@pytest.mark.parametrize("reading", every_reading(), ids=lambda r: "-".join(r.values()))
def test_every_reading_trains(reading: dict[str, object], level1: str) -> None:
    model = detector(**reading, level1=level1)
    lengths = torch.tensor([9, 4, 1])
    output = model(torch.randn(3, 9, 7), lengths, noise_for(model, 3, 9))
    loss = detector_loss(output, lengths, model.config, step=1000)
    loss.total.backward()
    assert torch.isfinite(loss.total)
    unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    # without a state in any head the transition has nothing to do
    expected = (
        "transition" if reading == {"static_belief": "held", "change_prior": "constant", "evidence": "start"} else ""
    )
    assert all(name.startswith("transition.cell") and expected for name in unused), unused


@pytest.mark.parametrize("level1", ["gru", "simple"])
@pytest.mark.parametrize("reading", [{}, LITERAL, {"look_ahead": 3}], ids=["filtered", "literal", "look_ahead"])
def test_padding_changes_nothing(reading: dict[str, object], level1: str) -> None:
    model = detector(**reading, level1=level1)
    features = torch.randn(3, 11, 7, generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([11, 6, 1])
    noise = noise_for(model, 3, 11)
    padded = features.clone()
    for row, length in zip(padded, lengths.tolist(), strict=True):
        row[length:] = float("nan")
    together = model(padded, lengths, noise)
    losses = []
    for i, length in enumerate(lengths.tolist()):
        own = Noise(noise.snippet[i : i + 1, :length], noise.segment[i : i + 1, :length])
        alone = model(features[i : i + 1, :length], lengths[i : i + 1], own)
        for name, value in alone.scan._asdict().items():
            torch.testing.assert_close(getattr(together.scan, name)[i, :length], value[0], msg=name)
        torch.testing.assert_close(together.snippet_kl[i, :length], alone.snippet_kl[0])
        losses.append(detector_loss(alone, lengths[i : i + 1], model.config, 1000).total)
    loss = detector_loss(together, lengths, model.config, 1000).total
    torch.testing.assert_close(loss, torch.stack(losses).mean())
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(("level1", "look_ahead"), [("gru", 1), ("gru", 3), ("simple", 1)])
def test_level1_prior_does_not_see_the_present(level1: str, look_ahead: int) -> None:
    """With v2 given, x_t changes no prior at t or before, only later ones (else its KL could vanish)."""
    model = detector(level1=level1, look_ahead=look_ahead).double()
    t, lengths = 5, torch.tensor([9])
    generator = torch.Generator().manual_seed(4)
    segment_latent = torch.randn(1, 9, 6, generator=generator, dtype=torch.float64)
    noise = Noise(
        *(torch.randn(1, 9, size, generator=generator, dtype=torch.float64) for size in (model.snippet_latent_size, 6))
    )
    features = torch.randn(1, 9, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    priors: list[torch.Tensor] = []
    change_points = torch.zeros(1, 9, dtype=torch.bool)
    levels = model.levels(features, lengths)

    # the KL at t depends on x_t through the posterior alone: hold the posterior and differentiate the prior's mean
    def record(_module: object, _inputs: object, output: torch.Tensor) -> None:
        priors.append(output)

    handle = model.snippet_prior.register_forward_hook(record)
    model.snippet_level(levels, segment_latent, change_points, lengths, noise)
    handle.remove()
    (gradient,) = torch.autograd.grad(priors[0][0, t].sum(), features, allow_unused=True, materialize_grads=True)
    assert gradient[0, t:].abs().max() == 0
    if level1 == "gru":
        assert gradient[0, t - 1].abs().max() > 0


def test_level1_latent_before_t_is_all_the_prior_knows_of_the_state() -> None:
    """The GRU state that the prior reads at t is made of v1 before t: x_t moves the KL at t through Q1 only."""
    model = detector(level1="gru").double()
    lengths = torch.tensor([6])
    generator = torch.Generator().manual_seed(4)
    features = torch.randn(1, 6, 7, generator=generator, dtype=torch.float64)
    segment_latent = torch.randn(1, 6, 6, generator=generator, dtype=torch.float64)
    noise = Noise(*(torch.randn(1, 6, size, generator=generator, dtype=torch.float64) for size in (5, 6)))
    none = torch.zeros(1, 6, dtype=torch.bool)
    changed = features.clone()
    changed[0, 3] += 1
    kls = [
        model.snippet_level(model.levels(x, lengths), segment_latent, none, lengths, noise)[1]
        for x in (features, changed)
    ]
    torch.testing.assert_close(kls[0][0, :3], kls[1][0, :3])
    assert (kls[0][0, 3:] != kls[1][0, 3:]).all()


def test_forced_changes_decide() -> None:
    model = detector().eval()
    forced = torch.zeros(1, 8, dtype=torch.bool)
    forced[0, [0, 3, 6]] = True
    scan = model.scan(torch.randn(1, 8, 7), torch.tensor([8]), forced_changes=forced)
    assert scan.change_points[0].nonzero().flatten().tolist() == [3, 6]


def test_segment_decoding_uses_the_last_change() -> None:
    model = detector(decode="segment")
    forced = torch.zeros(2, 7, dtype=torch.bool)
    forced[0, [2, 5]] = True
    output = model(torch.randn(2, 7, 7), torch.tensor([7, 7]), noise_for(model, 2, 7), forced)
    latent = model.decoded_latent(output.scan)
    for t, source in enumerate([0, 0, 2, 2, 2, 5, 5]):
        torch.testing.assert_close(latent[0, t], output.scan.latent[0, source])
        torch.testing.assert_close(latent[1, t], output.scan.latent[1, 0])


def test_look_ahead_is_a_mean_cut_at_the_end() -> None:
    model = detector(look_ahead=2)
    f1 = torch.rand(1, 4, 12)
    ahead = model._look_ahead(f1, torch.tensor([3]))
    torch.testing.assert_close(ahead[0, 0], (f1[0, 0] + f1[0, 1]) / 2)
    torch.testing.assert_close(ahead[0, 2], f1[0, 2])


def test_standardisation() -> None:
    mean, deviation = torch.arange(7.0), torch.tensor([1.0, 2, 3, 4, 5, 6, 0])
    per_dimension, pooled = detector(), detector(standardise="global")
    per_dimension.set_statistics(mean, deviation)
    pooled.set_statistics(mean, deviation)
    torch.testing.assert_close(per_dimension.standardise(mean + deviation)[:6], torch.ones(6), atol=5e-3, rtol=0)
    assert per_dimension.standardise(mean + 1)[6] == 1  # a constant dimension is not blown up
    scaled = pooled.standardise(mean + deviation)
    torch.testing.assert_close(scaled / scaled[0], deviation)


def test_squashed_features_are_what_both_modules_read() -> None:
    mean, deviation = torch.arange(7.0), torch.tensor([1.0, 2, 3, 4, 5, 6, 0])
    model = AHLM(7, 2, DetectorConfig(**SMALL), ClassifierConfig(width=5), squash=True).eval()  # type: ignore[arg-type]
    model.set_squash(mean, deviation)
    scores = torch.tensor([0.0, 0.1, 1e6, -1e6])[:, None]
    expected = torch.tensor([0.0, 0.1, 1.0, -1.0])[:, None].expand(4, 6)
    torch.testing.assert_close(model.read(mean + scores * deviation)[:, :6], expected, atol=5e-3, rtol=0)
    assert model.read(mean + 1)[6] == torch.tanh(torch.tensor(1.0))  # a constant dimension is not blown up

    features, lengths = 5 * torch.randn(2, 9, 7, generator=torch.Generator().manual_seed(1)), torch.tensor([9, 6])
    plain = AHLM(7, 2, DetectorConfig(**SMALL), ClassifierConfig(width=5)).eval()  # type: ignore[arg-type]
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("squash")})
    torch.testing.assert_close(model.classify(features, lengths), plain.classify(model.read(features), lengths))
    torch.testing.assert_close(
        model.change_points(features, lengths).kl_static,
        plain.change_points(model.read(features), lengths).kl_static,
    )


def test_slow_projection_is_what_the_detector_reads_and_reconstructs() -> None:
    model = detector(standardise="slow", slow_size=3)
    mean, projection = torch.arange(7.0), torch.randn(7, 3, generator=torch.Generator().manual_seed(2))
    model.set_projection(mean, projection)
    features = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(3))
    output = model(features, torch.tensor([5, 5]), noise_for(model, 2, 5))
    torch.testing.assert_close(output.target, (features - mean) @ projection)
    assert output.reconstruction.shape == (2, 5, 3)
    # what the projection leaves out changes nothing
    hidden = torch.linalg.svd(projection).U[:, 3]
    same = model(features + hidden, torch.tensor([5, 5]), noise_for(model, 2, 5))
    torch.testing.assert_close(same.scan.kl_static, output.scan.kl_static, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("evidence", ["start", "transition"])
def test_shared_posterior_width(evidence: str) -> None:
    model = detector(posterior_width="shared", evidence=evidence, belief_weight=0.0, evidence_weight=1.0)
    output = model.scan(torch.randn(2, 6, 7, generator=torch.Generator().manual_seed(1)), torch.tensor([6, 6]))
    width = model.posterior_features.bias[model.config.latent_size :].clamp(-5, 2)
    torch.testing.assert_close(output.belief_log_std, width.expand(2, 6, -1))
    assert output.belief_mean.std(1).min() > 0


def test_loss_is_the_bound_without_change_points() -> None:
    """By hand: error over twice the variance, plus both KLs, per snippet."""
    model = detector(level1="simple", sigma=2.0, kl_warmup=4, kl_weight=0.5)
    lengths = torch.tensor([5])
    never = torch.zeros(1, 5, dtype=torch.bool)
    output = model(torch.randn(1, 5, 7), lengths, noise_for(model, 1, 5), never)
    error = (output.target - output.reconstruction).square().sum() / 8 / 5
    kl = (output.snippet_kl.sum() + output.scan.kl_charged.sum()) / 5
    loss = detector_loss(output, lengths, model.config, step=1)
    torch.testing.assert_close(loss.total, error + 0.5 * 0.5 * kl)
    assert loss.snippet_kl > 0
    assert loss.segment_kl > 0
