from __future__ import annotations

import pytest
import torch

from ahlm.config import ClassifierConfig
from ahlm.model.classification import AttentionClassifier, ClassifierOutput, topk_mean
from ahlm.model.losses import acm_regularisers, classifier_loss, cross_entropy


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
