# SPDX-License-Identifier: Apache-2.0
"""N-way K-shot episodes over a list of samples, support and query always from different sources."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mindvideo.data.manifest import Sample
from mindvideo.errors import InputError

_DEALS = 1000  # random deals of the sources before giving up on very uneven classes


@dataclass(frozen=True)
class Episode:
    """Positions in the sample list: `support` `[N, K]`, `query` `[N, Q]`; `classes` are the N class names.

    `unknown` `[U]` are queries of none of these classes.
    """

    classes: tuple[str, ...]
    support_NK: np.ndarray  # noqa: N815
    query_NQ: np.ndarray  # noqa: N815
    unknown_U: np.ndarray  # noqa: N815


class EpisodeSampler:
    """Episode i of a seed is always the same, whoever asks for it and in whatever order.

    The sources of an episode's classes are dealt at random to a support side and a query side, about half of
    each class's to each where it has enough; the K support clips of a class come from the one, its Q query
    clips from the other. A source that several classes share is on one side for all of them.

    The `unknown` queries of an episode are of other classes, as many different ones as possible, and of no
    source on the support side. They are drawn last, so the rest of an episode is the same without them, unless a
    deal of shared sources had to be repeated for their sake.
    """

    def __init__(self, samples: Sequence[Sample], *, way: int, shot: int, query: int, seed: int, unknown: int = 0):
        """InputError where there are fewer than `way` classes, a class has too few sources or clips, or some
        `way` classes leave too few clips for the unknown queries."""
        self.way, self.shot, self.query, self.seed, self.unknown = way, shot, query, seed, unknown
        by_class: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        for position, sample in enumerate(samples):
            by_class[sample.label][sample.group].append(position)
        self.classes = sorted(by_class)
        if len(self.classes) < way:
            raise InputError(
                f"{way}-way episodes need {way} classes; there are {len(self.classes)}: {', '.join(self.classes)}."
            )
        self._clips = {name: dict(groups) for name, groups in by_class.items()}
        for name, groups in self._clips.items():
            if not _divisible([len(clips) for clips in groups.values()], shot, query):
                raise InputError(
                    f"class {name!r} has {sum(map(len, groups.values()))} clips of {len(groups)} sources: "
                    f"a {shot}-shot episode with {query} queries a class needs {shot} + {query} clips "
                    "with no source on both sides."
                )
        sizes = sorted(sum(map(len, groups.values())) for groups in self._clips.values())
        outside = sizes[: len(sizes) - way]
        if sum(outside) < unknown:
            raise InputError(
                f"{way}-way episodes leave {len(outside)} of {len(sizes)} classes, with as few as "
                f"{sum(outside)} clips in all: too few for {unknown} unknown queries."
            )

    def episode(self, index: int) -> Episode:
        """The episode of this number; InputError if its classes share sources so that no deal serves all."""
        rng = np.random.default_rng((self.seed, index))
        chosen = rng.choice(len(self.classes), self.way, replace=False)
        names = tuple(self.classes[i] for i in chosen)
        for _ in range(_DEALS):
            on_support = self._deal(names, rng)
            sides = [self._clips_by_side(name, on_support) for name in names]
            others = self._clips_of_others(names, on_support) if self.unknown else []
            known_served = all(len(support) >= self.shot and len(query) >= self.query for support, query in sides)
            if known_served and sum(map(len, others)) >= self.unknown:
                return Episode(
                    names,
                    np.stack([rng.choice(support, self.shot, replace=False) for support, _ in sides]),
                    np.stack([rng.choice(query, self.query, replace=False) for _, query in sides]),
                    _draw_from_many(others, self.unknown, rng),
                )
        unknown = f" and {self.unknown} unknown queries" if self.unknown else ""
        raise InputError(
            f"episode {index}: the sources of {', '.join(names)} cannot be dealt into "
            f"{self.shot} support and {self.query} query clips a class{unknown} ({_DEALS} deals tried)."
        )

    def _deal(self, names: Sequence[str], rng: np.random.Generator) -> dict[str, bool]:
        """Whether each source is on the support side.

        The sources of a class go, in random order, to the side that lacks more of its clips, and when neither
        lacks any to the one with fewer sources. Some order reaches every division that serves one class.
        """
        # What a side needs is shot * query parts, so that shares are whole numbers.
        parts, enough = {True: self.query, False: self.shot}, self.shot * self.query
        on_support: dict[str, bool] = {}
        for name in names:
            groups = list(self._clips[name].items())
            shuffled = [groups[i] for i in rng.permutation(len(groups))]
            # By side: the share of the needed clips that it has, and its number of sources.
            has = {True: (0, 0), False: (0, 0)}
            for group, clips in sorted(shuffled, key=lambda item: item[0] not in on_support):
                if group not in on_support:
                    on_support[group] = has[True] <= has[False]
                side = on_support[group]
                share, sources = has[side]
                has[side] = (min(enough, share + len(clips) * parts[side]), sources + 1)
        return on_support

    def _clips_by_side(self, name: str, on_support: Mapping[str, bool]) -> tuple[list[int], list[int]]:
        """The class's clips on the support side and on the query side; a source not dealt is on the latter."""
        support = [i for group, clips in self._clips[name].items() if on_support.get(group, False) for i in clips]
        query = [i for group, clips in self._clips[name].items() if not on_support.get(group, False) for i in clips]
        return support, query

    def _clips_of_others(self, names: Sequence[str], on_support: Mapping[str, bool]) -> list[list[int]]:
        """For each class but these, its clips that are not on the support side."""
        return [self._clips_by_side(name, on_support)[1] for name in self.classes if name not in names]


def _draw_from_many(clips_by_class: Sequence[Sequence[int]], count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` clips: one of each class, the classes in random order, then a second of each, and so on."""
    turns = [
        (turn, place, int(clip))
        for place, i in enumerate(rng.permutation(len(clips_by_class)))
        for turn, clip in enumerate(rng.permutation(clips_by_class[i])[:count])
    ]
    return np.array([clip for _, _, clip in sorted(turns)[:count]], dtype=int)


def _divisible(sizes: Sequence[int], shot: int, query: int) -> bool:
    """Whether the sources can be dealt so that one side has `shot` clips and the other `query`."""
    most = sum(sizes) - query
    too_few = {0}  # clips that a support side can have and still lack some; more than `most` never become fewer
    for size in sizes:
        sums = {total + size for total in too_few}
        if any(shot <= total <= most for total in sums):
            return True
        too_few |= {total for total in sums if total < shot}
    return False
