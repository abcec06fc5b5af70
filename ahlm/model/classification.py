"""EFC, the attention-based classification module (section 3.3), built as in ACM-Net (arXiv 2104.02967)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ahlm.config import ClassifierConfig
from ahlm.kernels.padding import real_only, snippet_mask

BRANCHES = ("foreground", "context", "background")


class ClassifierOutput(NamedTuple):
    """What EFC says of a batch; the last class is background.

    Attributes:
        cas: class activation sequence M before attention, class logits (B, T, C + 1).
        attention: foreground, context and background attention, summing to 1 (B, T, 3).
        video_logits: top-k mean of each branch's attended CAS (B, 3, C + 1); softmax gives the video scores.
        embedding: embedded snippets without dropout (B, T, width).
    """

    cas: Tensor
    attention: Tensor
    video_logits: Tensor
    embedding: Tensor

    def foreground_cas(self) -> Tensor:
        """Per-snippet class probabilities times foreground attention (B, T, C), background left out.

        ACM-Net takes the softmax after the attention; as probabilities of the foreground this order localises better
        (true boundaries as change-points, validation: 30 against 25 mAP on `hapt`, 78 against 77 on `ucf15`).
        """
        return (torch.softmax(self.cas, dim=-1) * self.attention[..., :1])[..., :-1]

    def video_scores(self) -> Tensor:
        """Softmax video scores of the foreground branch (B, C), background left out."""
        return torch.softmax(self.video_logits[:, 0], dim=-1)[:, :-1]


def topk_mean(scores: Tensor, lengths: Tensor, divisor: int) -> Tensor:
    """Mean over time of the `max(1, length // divisor)` largest scores of each class (B, T, K) -> (B, K)."""
    k = (lengths // divisor).clamp(min=1)
    real = snippet_mask(lengths, scores.shape[1])[..., None]
    # as many as the longest video may ask for: to read k would keep the CPU waiting for a GPU
    most = max(1, scores.shape[1] // divisor)
    largest = scores.masked_fill(~real, -torch.inf).topk(most, dim=1).values
    chosen = torch.arange(largest.shape[1], device=scores.device)[:, None] < k[:, None, None]
    return torch.where(chosen, largest, 0.0).sum(1) / k[:, None]


class AttentionClassifier(nn.Module):
    """Embedding, three attentions and a snippet classifier with one background class."""

    def __init__(self, feature_dim: int, n_classes: int, config: ClassifierConfig) -> None:
        super().__init__()
        width = config.width or feature_dim
        self.topk = (config.topk_foreground, config.topk_context, config.topk_background)
        self.embedding = nn.Conv1d(feature_dim, width, kernel_size=3, padding=1)
        self.attention = nn.Conv1d(width, len(BRANCHES), kernel_size=1)
        self.classifier = nn.Linear(width, n_classes + 1)
        self.dropout = nn.Dropout(config.dropout)

    def embed(self, features: Tensor, lengths: Tensor) -> Tensor:
        """Snippet embedding (B, T, F) -> (B, T, width), zero at padded snippets."""
        real = snippet_mask(lengths, features.shape[1])
        # zeroed on the way in too: at a video's end the convolution then sees what its own padding would give
        features = real_only(features, real)
        return torch.relu(self.embedding(features.transpose(1, 2))).transpose(1, 2) * real[..., None]

    def forward(self, features: Tensor, lengths: Tensor) -> ClassifierOutput:
        """CAS, attention and video logits of padded videos.

        Args:
            features: snippet features (B, T, F); values at padded snippets do not matter.
            lengths: real snippets of each video (B,), at least 1.
        """
        embedding = self.embed(features, lengths)
        # whole snippets are dropped first, then single features (ACM-Net)
        kept = self.dropout(torch.ones_like(embedding[..., :1]))
        dropped = embedding * kept
        attention = torch.softmax(self.attention(embedding.transpose(1, 2)).transpose(1, 2), dim=-1)
        cas = self.classifier(self.dropout(dropped))
        video_logits = torch.stack(
            [topk_mean(cas * attention[..., [i]], lengths, divisor) for i, divisor in enumerate(self.topk)], dim=1
        )
        return ClassifierOutput(cas, attention, video_logits, embedding)

    @torch.no_grad()
    def activity(self, output: ClassifierOutput) -> Tensor:
        """Foreground CAS (B, T, C) of an output of training, without dropout and gradient."""
        return output._replace(cas=self.classifier(output.embedding)).foreground_cas()
