# SPDX-License-Identifier: Apache-2.0
"""How far a number may be off because the test videos are a sample: percentile bootstrap over sources of videos."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np


def bootstrap_intervals(
    statistic: Callable[[np.ndarray, np.ndarray], dict[str, float]],
    known_groups_N: Sequence[str] | np.ndarray,
    unknown_groups_M: Sequence[str] | np.ndarray,
    *,
    resamples: int = 1000,
    seed: int = 0,
    share: float = 0.95,
) -> dict[str, tuple[float, float]]:
    """Low and high bound of the interval of every number that `statistic` makes of known and unknown videos.

    It is given the places of N known and M unknown videos. Videos of one group (cut from one source) are alike, so
    groups are drawn with replacement, known and unknown ones apart, as many as there are; `np.arange(N)` makes every
    video a source of its own. With a single source on a side nothing can vary there: the bounds are nan.
    """
    known, unknown = _Sources(known_groups_N), _Sources(unknown_groups_M)
    rng = np.random.default_rng(seed)
    if min(known.number, unknown.number) < 2:
        return dict.fromkeys(statistic(known.draw(rng), unknown.draw(rng)), (np.nan, np.nan))
    values = [statistic(known.draw(rng), unknown.draw(rng)) for _ in range(resamples)]
    ends = (50 * (1 - share), 50 * (1 + share))
    bounds = {name: np.percentile([numbers[name] for numbers in values], ends) for name in values[0]}
    return {name: (float(low), float(high)) for name, (low, high) in bounds.items()}


class _Sources:
    """The groups of N videos, kept so that drawing some of them costs no loop."""

    def __init__(self, groups_N: Sequence[str] | np.ndarray):
        _, group_N, self.sizes = np.unique(np.asarray(groups_N), return_inverse=True, return_counts=True)
        self.places_N = np.argsort(group_N, kind="stable")  # group after group
        self.starts = np.cumsum(self.sizes) - self.sizes
        self.number = len(self.sizes)

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """The places of all videos of as many groups as there are, drawn with replacement."""
        drawn = rng.integers(self.number, size=self.number)
        sizes = self.sizes[drawn]
        first = np.cumsum(sizes) - sizes
        return self.places_N[np.arange(sizes.sum()) + np.repeat(self.starts[drawn] - first, sizes)]
