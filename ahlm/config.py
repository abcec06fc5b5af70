"""Every setting of a run, one frozen dataclass a concern; recipes are YAML files of these fields."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, is_dataclass
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")


@dataclass(frozen=True)
class DataConfig:
    """What to read.

    Attributes:
        root: folder of the data set; none: the generated demo.
        fps: frames a second of the features, unless `features.json` in `root` says otherwise.
        stride: frames between snippets, likewise.
        window: frames a snippet covers, likewise.
        validation: share of the training list, from its end or that of every class, kept for validation (0: none).
        missing: what to do about listed videos without features: stop, or skip them and say so.
        features: folder of the features within `root`; none: found by its content.
        annotations: annotation file within `root`; none: gt.json, labels.csv or the only JSON that can be it.
    """

    root: str | None = None
    fps: float = 25.0
    stride: float = 16
    window: float = 16
    validation: float = 0.0
    missing: Literal["error", "skip"] = "error"
    features: str | None = None
    annotations: str | None = None


@dataclass(frozen=True)
class DetectorConfig:
    """The change-point detection module, DFC (section 3.2).

    Attributes:
        width: units of each encoder and decoder layer (the paper's 1024).
        state_size: units of the GRU state d (the paper's 256).
        latent_size: Z, dimensions of the level-2 latent v2.
        level1: `gru`: latent with its own GRU state (the paper's); `simple`: 32-d latent without recurrence.
        snippet_latent_size: dimensions of the level-1 latent v1 (`simple` uses 32).
        static_belief: `held`: p_static is the stored belief; `prior`: the head P, eq. 4 as written.
        change_prior: p_change is `state`: P(d'); `constant`: one learned Gaussian, the bias of head P; `full`: eq. 5 as
            written.
        evidence: `start`: Q with the initial state; `transition`: eq. 6 as written.
        posterior_width: the deviation of Q is learned `per_snippet`, or one vector is `shared` by all snippets.
        belief_weight: rho, the weight of the belief's precision in the filter of eq. 6.
        evidence_weight: kappa, the weight of the evidence's precision.
        decode: x_t is decoded from v2 of the `current` snippet or of the last change-point (`segment`).
        refractory: steps without a test after a change-point.
        reset: start the network afresh at a change-point (section 3.2); off for the ablation only.
        alpha: step of beta, up after a change-point (eq. 8).
        alpha_down: step of beta after no change-point; none: alpha.
        beta0: beta at the start.
        beta_range: beta is clipped to this range.
        look_ahead: level 2 sees the mean of f1 over this many snippets, and boundaries are put at its middle.
        both_directions: videos are also scanned from their end, and change-points of the two directions joined
            (`ahlm/localization/directions.py`); DFC's training does not look at it.
        lone_ratio: with `both_directions`, at test: a change-point that one direction alone has found counts only where
            D_static exceeds this share of D_change; nothing at or below beta's lower clip. To teach EFC, all count.
        standardise: features are centred and divided by a deviation `per_dimension` or one `global` one; `slow`: they
            are projected on the directions that vary most against the noise between neighbouring snippets, the noise
            made white (`ahlm/data/slow_features.py`).
        slow_size: directions that `slow` keeps.
        sigma: deviation of the decoder's Gaussian, in units of standardised features.
        kl_weight: weight of the KL terms of eq. 2.
        kl_warmup: steps over which that weight rises to its value.
        free_nats: KL below this many nats a snippet costs nothing.
        crop: snippets of a training crop.
        shared_embedding: DFC reads EFC's embedding instead of the features.
    """

    width: int = 1024
    state_size: int = 256
    latent_size: int = 64
    level1: Literal["gru", "simple"] = "gru"
    snippet_latent_size: int = 64
    static_belief: Literal["held", "prior"] = "held"
    change_prior: Literal["state", "constant", "full"] = "state"
    evidence: Literal["start", "transition"] = "start"
    posterior_width: Literal["per_snippet", "shared"] = "per_snippet"
    belief_weight: float = 0.7
    evidence_weight: float = 0.3
    decode: Literal["current", "segment"] = "current"
    refractory: int = 0
    reset: bool = True
    alpha: float = 0.15
    alpha_down: float | None = None
    beta0: float = 0.5
    beta_range: tuple[float, float] = (0.15, 0.9)
    look_ahead: int = 1
    both_directions: bool = False
    lone_ratio: float = 0.0
    standardise: Literal["per_dimension", "global", "slow"] = "per_dimension"
    slow_size: int = 16
    sigma: float = 1.0
    kl_weight: float = 1.0
    kl_warmup: int = 100
    free_nats: float = 0.0
    crop: int = 750
    shared_embedding: bool = False


@dataclass(frozen=True)
class ClassifierConfig:
    """The attention-based classification module, EFC (section 3.3; ACM-Net, arXiv 2104.02967).

    Attributes:
        width: channels of the embedding; none: the feature dimension.
        dropout: rate of snippet and feature dropout.
        n_snippets: T, snippets sampled from a video (section 4.2: 750 on THUMOS14, 150 on ActivityNet).
        passes: samples of T snippets that are read of a longer video at test, each a part of a step later than the one
            before; their mean is what is known of the video.
        window: at test, a video of more snippets is read and localised in pieces of so many, which overlap by half
            (`ahlm/localization/pieces.py`); none: every video as a whole, as in the paper.
        topk_foreground: the foreground score is the mean of the top T / topk_foreground snippets.
        topk_context: likewise for context.
        topk_background: likewise for background.
        foreground_weight: weight of the foreground term of eq. 12.
        context_weight: weight of the context term of eq. 12 (0: Table 3 without context).
        background_weight: weight of the background term of eq. 12 (0: Table 3 without background).
        guide_weight: weight of ACM-Net's guide term (0: the paper's eq. 12).
        feature_weight: weight of ACM-Net's feature-norm term.
        sparsity_weight: weight of ACM-Net's attention-sparsity term.
        segment_weight: weight of `segment_loss`, by which change-points teach EFC (0: the paper's eq. 12).
        segment_from: step from which on that term counts; DFC must be done by then, and have an embedding of its own.
    """

    width: int | None = None
    dropout: float = 0.7
    n_snippets: int = 750
    passes: int = 1
    window: int | None = None
    topk_foreground: int = 8
    topk_context: int = 3
    topk_background: int = 3
    foreground_weight: float = 1.0
    context_weight: float = 1.0
    background_weight: float = 1.0
    guide_weight: float = 0.0
    feature_weight: float = 0.0
    sparsity_weight: float = 0.0
    segment_weight: float = 0.0
    segment_from: int = 0


@dataclass(frozen=True)
class OptimConfig:
    """Adam for one of the two modules (section 4.2: lr 1e-4, weight decay 5e-4).

    Attributes:
        iterations: steps of this module; the run ends when both modules are done.
        batch_size: videos (EFC) or crops (DFC) a step.
        lr: learning rate.
        weight_decay: Adam's L2 term.
        warmup: steps over which the learning rate rises linearly.
        decay_at: share of the iterations after which the learning rate is multiplied by 0.3 (1: never).
        clip_norm: gradient norm above which gradients are scaled down (0: off).
    """

    iterations: int = 6000
    batch_size: int = 16
    lr: float = 1e-4
    weight_decay: float = 5e-4
    warmup: int = 0
    decay_at: float = 1.0
    clip_norm: float = 0.0


@dataclass(frozen=True)
class RefinementConfig:
    """The longest-common-subsequence step that deletes redundant change-points (section 3.3, end).

    Attributes:
        enabled: off for the ablation.
        similarity: cosine of the `raw` features, of features `centred` on the video's mean, or of EFC's `embedding`.
        cosine_threshold: snippets match above this cosine (the paper's 0.65).
        lcs_ratio: a change-point goes when LCS / shorter length reaches this.
        max_rounds: passes over the video at most.
    """

    enabled: bool = True
    similarity: Literal["raw", "centred", "embedding"] = "raw"
    cosine_threshold: float = 0.65
    lcs_ratio: float = 0.8
    max_rounds: int = 10


@dataclass(frozen=True)
class LocalizationConfig:
    """From change-points and CAS to detections (section 3.3, end; docs/method.md).

    Attributes:
        proposals: where segments come from: runs between `change_points`, runs above `thresholds`, or `both`.
        max_segments: none: the foreground runs are those above the thresholds; k: every run of up to k segments between
            neighbouring change-points is a proposal, and the scores alone rank them.
        class_threshold: classes whose video score passes are localised (0.25 THUMOS14, 0.10 ActivityNet).
        cas_thresholds: foreground thresholds on the CAS.
        relative_thresholds: `cas_thresholds` are shares of the class's largest CAS in the video.
        attention_thresholds: foreground thresholds on the foreground attention.
        upsample: points a snippet on which `thresholds` runs are found.
        extend: snippets by which a segment begins before its first change-point and ends after its last: in a gradual
            change, the change-point lies where most changes, and actions are labelled from its start to its end.
        contrast: a run of segments is compared with a `margin`, or with the segments next to it (`neighbours`).
        threshold_weight: factor of the scores of `thresholds` proposals where both kinds compete (`both`).
        oic_margin: outer-inner contrast: width of the outer margin, as a share of the segment's length.
        gamma: weight of the video score in a detection's score.
        suppression: `hard` or `soft` (Gaussian) non-maximum suppression.
        nms_tiou: hard NMS drops a detection that overlaps a better one of its class by more than this.
        soft_sigma: width of the Gaussian of soft-NMS.
        min_score: soft-NMS drops detections below this.
        nms_plus_one: overlap as ACM-Net computes it, with one second more a segment.
    """

    proposals: Literal["change_points", "both", "thresholds"] = "change_points"
    max_segments: int | None = None
    class_threshold: float = 0.25
    cas_thresholds: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    relative_thresholds: bool = False
    attention_thresholds: tuple[float, ...] = ()
    upsample: int = 8
    extend: float = 0.0
    contrast: Literal["margin", "neighbours"] = "margin"
    threshold_weight: float = 0.1
    oic_margin: float = 0.2
    gamma: float = 0.0
    suppression: Literal["hard", "soft"] = "hard"
    nms_tiou: float = 0.55
    soft_sigma: float = 0.3
    min_score: float = 0.0
    nms_plus_one: bool = False


@dataclass(frozen=True)
class Config:
    """A whole run; settings that could not work raise a `ValueError` that names them.

    Attributes:
        data: what to read.
        squash: both modules read the tanh of each feature's standard score, so that rare large values count for little.
        detector: DFC.
        classifier: EFC.
        detector_optim: training of DFC.
        classifier_optim: training of EFC.
        detector_weight: lambda of `L = L_EFC + lambda L_DFC`.
        refinement: the LCS step.
        localization: from change-points and CAS to detections.
        protocol: evaluation protocol, one of those that need no list of ambiguous segments.
        seed: seed of everything random.
        save_every: steps between saved states, which are also scored where there is a validation split.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        precision: of the matrix products in training; the scans, their heads and the losses stay in float32.
        deterministic: same seed, same bits on a GPU too; an operation that cannot promise it is an error.
    """

    data: DataConfig = field(default_factory=DataConfig)
    squash: bool = False
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    detector_optim: OptimConfig = field(default_factory=OptimConfig)
    classifier_optim: OptimConfig = field(default_factory=OptimConfig)
    detector_weight: float = 1.0
    refinement: RefinementConfig = field(default_factory=RefinementConfig)
    localization: LocalizationConfig = field(default_factory=LocalizationConfig)
    protocol: Literal["thumos14", "thumos14-210", "thumos14-0.9", "thumos14-snippet-unfiltered", "activitynet-1.3"] = (
        "thumos14"
    )
    seed: int = 0
    save_every: int = 200
    device: str = "auto"
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    deterministic: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        if not DEVICE.fullmatch(self.device):
            raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {self.device}")
        low, high = self.detector.beta_range
        if not 0 <= low <= high < math.inf:
            raise ValueError(f"detector.beta_range must be two rising numbers of at least 0, got {low}, {high}")
        if self.detector.shared_embedding and self.detector.standardise == "slow":
            raise ValueError("detector.standardise must not be slow with shared_embedding: it projects the features")
        if self.detector.belief_weight + self.detector.evidence_weight == 0:
            raise ValueError("detector.belief_weight and evidence_weight must not both be 0: nothing would be believed")
        if not (self.localization.cas_thresholds or self.localization.attention_thresholds):
            raise ValueError("localization must have cas_thresholds or attention_thresholds, got neither")
        if self.classifier.segment_weight:
            self._check_teaching()

    @property
    def total_steps(self) -> int:
        """Steps of a run: those of the module that trains longer."""
        return max(self.classifier_optim.iterations, self.detector_optim.iterations)

    def _check_teaching(self) -> None:
        done, steps = self.detector_optim.iterations, self.classifier_optim.iterations
        begin = self.classifier.segment_from
        if begin < done:
            raise ValueError(f"classifier.segment_from must be at least detector_optim.iterations, {done}, got {begin}")
        if 0 < steps <= begin:
            raise ValueError(f"classifier_optim.iterations must exceed classifier.segment_from, {begin}, got {steps}")
        if self.detector.shared_embedding:
            raise ValueError("classifier.segment_weight must be 0 with shared_embedding: DFC is never done then")


def check_fields(settings: Any, section: str = "") -> None:
    """Look at each field of a `Config` by itself, or at those of one of its sections, whose name and a dot are given.

    Raises:
        ValueError: a value that is out of range or none of the choices; names the field.
    """
    hints = _hints(settings.__class__)
    for name, value in vars(settings).items():
        path, hint = section + name, hints[name]
        if is_dataclass(value):
            check_fields(value, f"{path}.")
        elif get_origin(hint) is Literal and value not in get_args(hint):
            raise ValueError(f"{path} must be one of {', '.join(get_args(hint))}, got {value!r}")
        elif value is not None and path in _RANGES:
            allowed, fits = _RANGES[path]
            if not fits(value):
                raise ValueError(f"{path} must be {allowed}, got {value}")


@cache
def _hints(section: type) -> dict[str, Any]:
    return get_type_hints(section)


_TABLE: tuple[tuple[str, str, Callable[[Any], bool]], ...] = (
    (
        "data.fps data.stride data.window detector.sigma detector_optim.lr classifier_optim.lr localization.soft_sigma",
        "a positive number",
        lambda value: 0 < value < math.inf,
    ),
    (
        "detector.width detector.state_size detector.latent_size detector.snippet_latent_size detector.look_ahead "
        "detector.crop classifier.width classifier.n_snippets classifier.passes classifier.window "
        "classifier.topk_foreground classifier.topk_context classifier.topk_background detector_optim.batch_size "
        "classifier_optim.batch_size localization.upsample localization.max_segments refinement.max_rounds save_every",
        "at least 1",
        lambda value: value >= 1,
    ),
    (
        "detector.refractory detector.alpha detector.alpha_down detector.beta0 detector.evidence_weight "
        "detector.kl_weight detector.kl_warmup detector.free_nats detector_optim.iterations detector_optim.warmup "
        "detector_optim.weight_decay detector_optim.clip_norm classifier_optim.iterations classifier_optim.warmup "
        "classifier_optim.weight_decay classifier_optim.clip_norm classifier.segment_weight classifier.segment_from "
        "detector.lone_ratio detector_weight classifier.foreground_weight classifier.context_weight "
        "classifier.background_weight classifier.guide_weight classifier.feature_weight classifier.sparsity_weight "
        "localization.oic_margin localization.extend",
        "at least 0",
        lambda value: 0 <= value < math.inf,
    ),
    ("seed", "in 0 .. 2^63 - 1", lambda value: 0 <= value < 2**63),
    ("refinement.lcs_ratio localization.threshold_weight", "in (0, 1]", lambda value: 0 < value <= 1),
    ("localization.gamma localization.class_threshold localization.min_score", "finite", math.isfinite),
    (
        "localization.cas_thresholds localization.attention_thresholds",
        "finite",
        lambda values: all(map(math.isfinite, values)),
    ),
    ("refinement.cosine_threshold", "in [-1, 1]", lambda value: -1 <= value <= 1),
    ("data.validation classifier.dropout", "in [0, 1)", lambda value: 0 <= value < 1),
    (
        "localization.nms_tiou detector.belief_weight detector_optim.decay_at classifier_optim.decay_at",
        "in [0, 1]",
        lambda value: 0 <= value <= 1,
    ),
)
_RANGES = {name: (allowed, fits) for names, allowed, fits in _TABLE for name in names.split()}
