"""The whole model (section 3.1, figure 2): change-point detection (DFC) beside classification (EFC)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ahlm.config import ClassifierConfig, DetectorConfig
from ahlm.kernels.change_point_scan import ScanOutput
from ahlm.model.change_point_detection import ChangePointDetector, DetectorOutput, Noise, safe_scale
from ahlm.model.classification import AttentionClassifier, ClassifierOutput


class AHLM(nn.Module):
    """Both modules; they share no parameter unless `shared_embedding` is chosen."""

    squash_mean: Tensor
    squash_scale: Tensor

    def __init__(
        self,
        feature_dim: int,
        n_classes: int,
        detector: DetectorConfig,
        classifier: ClassifierConfig,
        squash: bool = False,
    ) -> None:
        super().__init__()
        self.shared_embedding, self.squash = detector.shared_embedding, squash
        if squash:
            self.register_buffer("squash_mean", torch.zeros(feature_dim))
            self.register_buffer("squash_scale", torch.ones(feature_dim))
        self.classifier = AttentionClassifier(feature_dim, n_classes, classifier)
        width = classifier.width or feature_dim
        self.detector = ChangePointDetector(width if self.shared_embedding else feature_dim, detector)

    def set_squash(self, mean: Tensor, deviation: Tensor) -> None:
        """Store the training set's mean and deviation (F,)."""
        self.squash_mean.copy_(mean)
        self.squash_scale.copy_(safe_scale(deviation))

    def read(self, features: Tensor) -> Tensor:
        """What both modules see of features (..., F): themselves, or the tanh of their standard scores."""
        return torch.tanh((features - self.squash_mean) / self.squash_scale) if self.squash else features

    def detector_input(self, features: Tensor, lengths: Tensor) -> Tensor:
        """What DFC reads (B, T, F): what `read` makes of the features, or EFC's embedding of that."""
        seen = self.read(features)
        return self.classifier.embed(seen, lengths) if self.shared_embedding else seen

    def detect(self, features: Tensor, lengths: Tensor, noise: Noise) -> DetectorOutput:
        """Training pass of DFC on crops (B, T, F)."""
        output: DetectorOutput = self.detector(self.detector_input(features, lengths), lengths, noise)
        return output

    def change_points(self, features: Tensor, lengths: Tensor) -> ScanOutput:
        """Test pass of DFC on whole videos (B, T, F)."""
        return self.detector.scan(self.detector_input(features, lengths), lengths)

    def classify(self, features: Tensor, lengths: Tensor) -> ClassifierOutput:
        """EFC on sampled snippets (B, T, F)."""
        output: ClassifierOutput = self.classifier(self.read(features), lengths)
        return output
