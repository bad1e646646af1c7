"""Which combination is the n-th of a set: the whole product in order, or a sample of it.

A sample never repeats a combination and is never listed: the combinations are divided into strata (one for
each choice of the values that have weights), each stratum gets its share of the sample by systematic
sampling, and within a stratum a calculated permutation says which come first.
"""

import bisect
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from raynest_pipeline.images.sets.permutation import permuted
from raynest_pipeline.images.sets.space import Axis, split

MAX_STRATA = 100_000
"""Choices of weighted values, over all templates."""

START_STEPS = 1 << 62
"""Places where systematic sampling may start."""

Choice = tuple[int, dict[str, int]]
"""Position of a template, and the position of the value of each of its variables."""


class TooManyStrataError(ValueError):
    """The weighted values have too many combinations."""


class Product:
    """Every combination of every template, template after template."""

    def __init__(self, spaces: Sequence[Sequence[Axis]]) -> None:
        self._spaces = spaces
        self._ends = list(itertools.accumulate(math.prod(map(len, axes)) for axes in spaces))

    @property
    def total(self) -> int:
        """How many there are; may be more than `len` can tell."""
        return self._ends[-1]

    def choice(self, number: int) -> Choice:
        """The combination with this number, from 0."""
        template = bisect.bisect_right(self._ends, number)
        rest = number - (self._ends[template - 1] if template else 0)
        return template, _values(split(rest, self._spaces[template]))


@dataclass(frozen=True)
class _Stratum:
    template: int
    number: int
    """Among the choices of the weighted axes of the template."""
    weight: Fraction
    capacity: int


class Sample:
    """`count` different combinations, chosen by weight and seed.

    Args:
        spaces: The axes of each template.
        shares: The weight of each template.
        weigh: The weight of an entry of an axis; None for an axis without weights.
        count: How many, at most all there are.
        key: Another key, another sample.

    Raises:
        TooManyStrataError: See the class.
    """

    def __init__(
        self,
        spaces: Sequence[Sequence[Axis]],
        shares: Sequence[Fraction],
        weigh: Callable[[Axis], Sequence[Fraction] | None],
        count: int,
        key: bytes,
    ) -> None:
        weights = {id(axis): weigh(axis) for axes in spaces for axis in axes}
        self._weighted = [[axis for axis in axes if weights[id(axis)] is not None] for axes in spaces]
        self._even = [[axis for axis in axes if weights[id(axis)] is None] for axes in spaces]
        if sum(math.prod(map(len, axes)) for axes in self._weighted) > MAX_STRATA:
            raise TooManyStrataError(f"have more than {MAX_STRATA:,} combinations; leave some weights out")
        self._key = key
        strata = [
            stratum
            for template, axes in enumerate(self._weighted)
            for stratum in self._strata(template, axes, shares[template], weights)
        ]
        # In shuffled order: systematic sampling must not favour or pair neighbours.
        order = [permuted(at, len(strata), key + b"strata") for at in range(len(strata))]
        self._strata_chosen = [strata[at] for at in order]
        quotas = apportion(
            [s.weight for s in self._strata_chosen], [s.capacity for s in self._strata_chosen], count, key
        )
        self._ends = list(itertools.accumulate(quotas))

    def __len__(self) -> int:
        return self._ends[-1]

    def choice(self, number: int) -> Choice:
        """The combination with this number, from 0."""
        # With one stratum its own permutation is shuffle enough, and a larger sample begins like a smaller.
        if len(self._ends) > 1:
            number = permuted(number, len(self), self._key + b"order")
        place = bisect.bisect_right(self._ends, number)
        stratum = self._strata_chosen[place]
        rest = number - (self._ends[place - 1] if place else 0)
        key = self._key + b"%d,%d" % (stratum.template, stratum.number)
        within = permuted(rest, stratum.capacity, key)
        values = _values(split(stratum.number, self._weighted[stratum.template]))
        return stratum.template, values | _values(split(within, self._even[stratum.template]))

    def _strata(
        self,
        template: int,
        axes: Sequence[Axis],
        share: Fraction,
        weights: Mapping[int, Sequence[Fraction] | None],
    ) -> Iterator[_Stratum]:
        capacity = math.prod(map(len, self._even[template]))
        whole = math.prod((sum(weights[id(axis)] or (), Fraction(0)) for axis in axes), start=Fraction(1))
        for number in range(math.prod(map(len, axes))):
            weight = share / whole
            for axis, own in split(number, axes):
                weight *= (weights[id(axis)] or ())[own]
            yield _Stratum(template, number, weight, capacity)


def apportion(weights: Sequence[Fraction], capacities: Sequence[int], count: int, key: bytes) -> list[int]:
    """How many of `count` each stratum gives: its exact share, rounded down or up, never above its capacity.

    Where a share is above the capacity the stratum gives all it has and the others share the rest. The
    rounding is by systematic sampling (Madow, 1949) from a random start, so that it is fair to the small.

    Args:
        weights: Positive.
        capacities: Their sum is at least `count`.
        key: Of the random start.
    """
    # In whole numbers: exact, the same everywhere, and quick.
    scale = math.lcm(*(weight.denominator for weight in weights))
    whole = [int(weight * scale) for weight in weights]
    quotas = [0] * len(whole)
    rest = list(range(len(whole)))
    while True:
        total = sum(whole[at] for at in rest)
        full = [at for at in rest if whole[at] * count >= capacities[at] * total]
        if not full:
            break
        for at in full:
            quotas[at] = capacities[at]
        count -= sum(capacities[at] for at in full)
        rest = [at for at in rest if quotas[at] == 0]
    start = permuted(0, START_STEPS, key + b"start") * total
    reached = before = 0
    for at in rest:
        reached += whole[at] * count
        quotas[at] = (reached * START_STEPS + start) // (total * START_STEPS) - before
        before += quotas[at]
    return quotas


def _values(chosen: Iterator[tuple[Axis, int]]) -> dict[str, int]:
    return {name: position for axis, number in chosen for name, position in axis.choose(number)}
