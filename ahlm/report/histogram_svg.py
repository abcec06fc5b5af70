"""The picture that tells whether the test of eq. 7 can work: D_static / D_change at boundaries and elsewhere."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 420, 210, 6, 40, 36
BINS = 40
BOUNDARY, ELSEWHERE = "#d55e00", "#0072b2"
# named after the picture: inside a page these rules reach every other picture
STYLE = (
    ".ratio text{font:13px system-ui,sans-serif;fill:#24292f}.ratio .beta{fill:#8c959f;fill-opacity:.25}"
    ".ratio line{stroke:#8c959f}.ratio path{fill-opacity:.35;stroke-width:1.5}"
    f".ratio .at{{fill:{BOUNDARY};stroke:{BOUNDARY}}}.ratio .other{{fill:{ELSEWHERE};stroke:{ELSEWHERE}}}"
    "@media(prefers-color-scheme:dark){.ratio text{fill:#e6edf3}.ratio .other{fill:#56b4e9;stroke:#56b4e9}}"
)


def histogram_svg(
    boundaries: NDArray[np.float64], elsewhere: NDArray[np.float64], beta_range: tuple[float, float]
) -> str:
    """Shares of log(D_static / D_change) at true boundaries and elsewhere, as a self-contained SVG document.

    Eq. 7 finds a change where the ratio exceeds beta, and beta moves within `beta_range`, which is shaded: the test can
    work when one heap lies right of the band's left edge and the other left of it.

    Args:
        boundaries: natural logarithms at true boundaries [N]; values that are not finite are left out.
        elsewhere: away from them [M].
        beta_range: clip of eq. 8.
    """
    sides = [values[np.isfinite(values)] for values in (boundaries, elsewhere)]
    every = np.concatenate(sides)
    bounds = [math.log(beta) for beta in beta_range if beta > 0]
    low = min(float(np.quantile(every, 0.005)), *(bound - 0.5 for bound in bounds), math.inf)
    high = max(float(np.quantile(every, 0.995)), *(bound + 0.5 for bound in bounds), -math.inf)
    low_beta, high_beta = (math.log(beta) if beta > 0 else low for beta in beta_range)  # a clip of 0 is further left
    edges = np.linspace(low, high, BINS + 1)
    shares = [np.histogram(np.clip(values, low, high), edges)[0] / len(values) for values in sides]
    floor, top = HEIGHT - BOTTOM, max(float(share.max()) for share in shares)

    def x(value: float) -> float:
        return LEFT + (WIDTH - 2 * LEFT) * (value - low) / (high - low)

    def heap(share: NDArray[np.float64]) -> str:
        steps = "".join(
            f"V{floor - (floor - TOP) * s / top:.1f}H{x(e):.1f}" for s, e in zip(share, edges[1:], strict=True)
        )
        return f"M{LEFT} {floor}{steps}V{floor}z"

    medians = [math.exp(float(np.median(values))) for values in sides]
    label = (
        f"Histogram of D_static / D_change: median {medians[0]:.2g} at {len(sides[0])} true boundaries, "
        f"{medians[1]:.2g} at {len(sides[1])} edges elsewhere; beta is {beta_range[0]:g} to {beta_range[1]:g}"
    )
    band = x(high_beta) - x(low_beta)
    parts = [
        f'<rect class="beta" x="{x(low_beta):.1f}" y="{TOP}" width="{band:.1f}" height="{floor - TOP}"/>',
        f'<path class="other" d="{heap(shares[1])}"/><path class="at" d="{heap(shares[0])}"/>',
        f'<line x1="{LEFT}" x2="{WIDTH - LEFT}" y1="{floor}" y2="{floor}"/>',
        f'<rect class="at" x="{LEFT}" y="5" width="11" height="11" rx="2"/>'
        f'<text x="{LEFT + 17}" y="15">boundaries, median {medians[0]:.2g}</text>',
        f'<rect class="other" x="{WIDTH / 2 + 10}" y="5" width="11" height="11" rx="2"/>'
        f'<text x="{WIDTH / 2 + 27}" y="15">elsewhere, median {medians[1]:.2g}</text>',
        f'<text x="{x((low_beta + high_beta) / 2):.1f}" y="{TOP - 5}" text-anchor="middle">β</text>',
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 3}" text-anchor="middle">D_static / D_change</text>',
    ]
    for power in range(math.ceil(low / math.log(10)), math.floor(high / math.log(10)) + 1):
        at = x(power * math.log(10))
        parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{floor}" y2="{floor + 4}"/>')
        anchor = "start" if at < 20 else "end" if at > WIDTH - 20 else "middle"
        parts.append(f'<text x="{at:.1f}" y="{floor + 17}" text-anchor="{anchor}">{10.0**power:g}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" class="ratio" role="img" '
        f'aria-label="{label}"><style>{STYLE}</style>{"".join(parts)}</svg>\n'
    )
