from __future__ import annotations

import pytest
import torch

from ahlm.config import ClassifierConfig
from ahlm.model.classification import AttentionClassifier, ClassifierOutput, topk_mean
from ahlm.model.losses import acm_regularisers, classifier_loss, cross_entropy, segment_loss


def classifier(**config: object) -> AttentionClassifier:
    torch.manual_seed(0)
    return AttentionClassifier(6, 3, ClassifierConfig(width=8, **config))  # type: ignore[arg-type]


def test_topk_mean_counts_real_snippets_only() -> None:
    scores = torch.tensor([[[1.0], [5.0], [3.0], [99.0]], [[4.0], [2.0], [8.0], [6.0]]])
    # a third of 3 is 1 snippet, a third of 4 is 1; half of 3 is 1, half of 4 is 2
    lengths = torch.tensor([3, 4])
    torch.testing.assert_close(topk_mean(scores, lengths, 3), torch.tensor([[5.0], [8.0]]))
    torch.testing.assert_close(topk_mean(scores, lengths, 2), torch.tensor([[5.0], [7.0]]))
    torch.testing.assert_close(topk_mean(scores[:1], torch.tensor([1]), 8), torch.tensor([[1.0]]))


def test_attention_is_a_distribution_and_shapes_hold() -> None:
    model = classifier().eval()
    output = model(torch.randn(2, 9, 6), torch.tensor([9, 5]))
    torch.testing.assert_close(output.attention.sum(-1), torch.ones(2, 9))
    assert output.cas.shape == (2, 9, 4)
    assert output.video_logits.shape == (2, 3, 4)
    assert output.foreground_cas().shape == (2, 9, 3)
    assert output.video_scores().shape == (2, 3)


@pytest.mark.parametrize("poison", [0.0, 7.0, float("nan")])
def test_padding_changes_nothing(poison: float) -> None:
    model = classifier().eval()
    features = torch.randn(3, 12, 6, generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([12, 7, 1])
    padded = features.clone()
    for row, length in zip(padded, lengths.tolist(), strict=True):
        row[length:] = poison
    together = model(padded, lengths)
    for i, length in enumerate(lengths.tolist()):
        alone = model(features[i : i + 1, :length], lengths[i : i + 1])
        torch.testing.assert_close(together.cas[i, :length], alone.cas[0])
        torch.testing.assert_close(together.attention[i, :length], alone.attention[0])
        torch.testing.assert_close(together.video_logits[i], alone.video_logits[0])


def test_padding_reaches_no_gradient() -> None:
    model = classifier(dropout=0.0)
    lengths, labels = torch.tensor([4]), torch.eye(3)[:1]
    gradients = []
    for width in (4, 9):
        features = torch.full((1, width, 6), float("nan"))
        features[:, :4] = torch.arange(24.0).reshape(1, 4, 6) / 10
        model.zero_grad()
        loss = classifier_loss(model(features, lengths), labels, lengths, ClassifierConfig())
        loss.total.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_cross_entropy_normalises_labels() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    logs = torch.log_softmax(logits, -1)[0]
    expected = -(logs[0] + logs[2]) / 2
    torch.testing.assert_close(cross_entropy(logits, torch.tensor([[1.0, 0.0, 1.0]])), expected)


def test_branches_get_their_labels() -> None:
    """Foreground [y, 0], context [y, 1], background [0, 1] (eq. 11)."""
    logits = torch.randn(1, 3, 3, generator=torch.Generator().manual_seed(2))
    output = ClassifierOutput(torch.zeros(1, 4, 3), torch.full((1, 4, 3), 1 / 3), logits, torch.zeros(1, 4, 5))
    loss = classifier_loss(output, torch.tensor([[0.0, 1.0]]), torch.tensor([4]), ClassifierConfig())
    logs = torch.log_softmax(logits[0], -1)
    torch.testing.assert_close(loss.foreground, -logs[0, 1])
    torch.testing.assert_close(loss.context, -(logs[1, 1] + logs[1, 2]) / 2)
    torch.testing.assert_close(loss.background, -logs[2, 2])
    torch.testing.assert_close(loss.total, loss.foreground + loss.context + loss.background)


def test_extreme_logits_give_finite_losses() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    loss = cross_entropy(logits, torch.tensor([[0.0, 1.0, 0.0]]))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


def test_acm_terms_against_their_formulas() -> None:
    generator = torch.Generator().manual_seed(3)
    cas, embedding = torch.randn(1, 6, 3, generator=generator), torch.randn(1, 6, 5, generator=generator)
    attention = torch.softmax(torch.randn(1, 6, 3, generator=generator), -1)
    output = ClassifierOutput(cas, attention, torch.zeros(1, 3, 3), embedding)
    lengths = torch.tensor([6])

    guide = (1 - torch.softmax(cas * attention[..., :1], -1)[..., -1] - attention[..., 0]).abs().sum()
    torch.testing.assert_close(acm_regularisers(output, lengths, ClassifierConfig(guide_weight=1.0)), guide)
    sparsity = attention[..., :2].sum() / 2  # ACM-Net takes the mean of the two attentions
    torch.testing.assert_close(acm_regularisers(output, lengths, ClassifierConfig(sparsity_weight=1.0)), sparsity)

    config = ClassifierConfig(feature_weight=1.0, topk_foreground=3, topk_context=2, topk_background=6)
    norms = []
    for branch, k in enumerate((2, 3, 1)):
        best = attention[0, :, branch].topk(k).indices
        norms.append(embedding[0, best].mean(0).norm())
    f, c, b = norms
    expected = (torch.relu(50 - f + c) + torch.relu(50 - c + b) + b) ** 2
    torch.testing.assert_close(acm_regularisers(output, lengths, config), expected)


def segment_case() -> tuple[AttentionClassifier, ClassifierOutput, torch.Tensor, torch.Tensor, torch.Tensor]:
    model = classifier(dropout=0.5)
    features = torch.randn(3, 12, 6, generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([12, 7, 1])
    labels = torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 1, 1]])
    segments = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 4, 4, 4, 4, 4], [2, 2, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3], [0] * 12])
    return model, model(features, lengths), labels, lengths, segments


def test_activity_is_that_of_a_test() -> None:
    model, output, _, lengths, _ = segment_case()
    features = torch.randn(3, 12, 6, generator=torch.Generator().manual_seed(1))
    activity = model.activity(output)
    assert not activity.requires_grad
    assert not torch.allclose(activity, output.foreground_cas()), "dropout"
    torch.testing.assert_close(activity, model.eval()(features, lengths).foreground_cas())


def test_segments_teach_their_snippets() -> None:
    model, output, labels, lengths, segments = segment_case()
    activity = model.activity(output)
    expected = torch.zeros(())
    for b, length in enumerate(lengths.tolist()):
        members = [segments[b, :length] == s for s in segments[b, :length].unique()]
        means = torch.stack([(activity[b, :length] * labels[b])[member].mean(0) for member in members])
        for member, mean in zip(members, means, strict=True):
            best = int(mean.argmax())
            target = mean[best] / means[:, best].max()
            for t in member.nonzero()[:, 0]:
                log_p = torch.log_softmax(output.cas[b, t], -1)[best]
                a = output.attention[b, t, 0]
                error = -target * (log_p + a.log()) - (1 - target) * (1 - a).log()
                expected = expected + error / length / 3
    loss = segment_loss(output, activity, labels, lengths, segments)
    torch.testing.assert_close(loss, expected)
    # the teacher is a constant: the gradients are those of the plain sum, in which it is one
    parameters = list(model.parameters())
    pairs = [torch.autograd.grad(value, parameters, retain_graph=True) for value in (loss, expected)]
    for found, right in zip(*pairs, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-6)


def test_padding_teaches_nothing() -> None:
    model, output, labels, lengths, segments = segment_case()
    activity, gradients = model.activity(output), []
    for poison in (0.0, 7.0):
        cas, attention, taught = output.cas.detach().clone(), output.attention.detach().clone(), activity.clone()
        for b, length in enumerate(lengths.tolist()):
            cas[b, length:], attention[b, length:], taught[b, length:] = poison, poison, poison
        cas.requires_grad_()
        segment_loss(output._replace(cas=cas, attention=attention), taught, labels, lengths, segments).backward()
        assert cas.grad is not None
        gradients.append(cas.grad)
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().sum() > 0


def test_segments_of_a_video_without_labels_are_background() -> None:
    model, output, labels, lengths, segments = segment_case()
    loss = segment_loss(output, model.activity(output), 0 * labels, lengths, segments)
    real = torch.arange(12) < lengths[:, None]
    nothing = torch.where(real, -(1 - output.attention[..., 0]).log(), 0.0).sum(1) / lengths
    torch.testing.assert_close(loss, nothing.mean())
