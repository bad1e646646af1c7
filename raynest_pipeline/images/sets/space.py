"""The combinations of values that one template can have, numbered: any of them is found by its number.

Rules tie variables together. Those are listed, as far as the rules reach; everything else is arithmetic.
"""

import math
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

MAX_TIED = 1_000_000
"""Combinations of the variables that rules tie together."""


@dataclass(frozen=True)
class Rule:
    """What is left out: `bad` is asked with the position of the value of each of `names`."""

    names: tuple[str, ...]
    bad: Callable[[Mapping[str, int]], bool]


class TiedError(ValueError):
    """Rules tie together variables with more combinations than can be listed."""


@dataclass(frozen=True)
class Axis:
    """Variables that are chosen together: one, or those that rules tie.

    Attributes:
        names: The variables.
        sizes: How many values each has.
        allowed: Numbers of the combinations that the rules leave; None: all.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    allowed: Sequence[int] | None = None

    def __len__(self) -> int:
        return math.prod(self.sizes) if self.allowed is None else len(self.allowed)

    def choose(self, number: int) -> Sequence[tuple[str, int]]:
        """Each variable with the position of its value."""
        code = number if self.allowed is None else self.allowed[number]
        if len(self.names) == 1:
            return ((self.names[0], code),)
        chosen = []
        for name, size in zip(reversed(self.names), reversed(self.sizes), strict=True):
            code, position = divmod(code, size)
            chosen.append((name, position))
        return chosen


def axes_of(sizes: Mapping[str, int], rules: Sequence[Rule]) -> list[Axis]:
    """The axes of a template.

    Args:
        sizes: Number of values by variable, of the variables of the template, in their order.
        rules: Those that concern these variables only.

    Raises:
        TiedError: See the class.
    """
    groups: list[set[str]] = [{name} for name in sizes]
    for rule in rules:
        joined = [group for group in groups if group & set(rule.names)]
        groups = [group for group in groups if group not in joined] + [set().union(*joined)]
    order = list(sizes)
    groups.sort(key=lambda group: min(map(order.index, group)))
    return [_axis([name for name in order if name in group], sizes, rules) for group in groups]


def _axis(names: Sequence[str], sizes: Mapping[str, int], rules: Sequence[Rule]) -> Axis:
    own = [rule for rule in rules if set(rule.names) <= set(names)]
    axis = Axis(tuple(names), tuple(sizes[name] for name in names))
    if not own:
        return axis
    if len(axis) > MAX_TIED:
        raise TiedError(
            f"tie {', '.join(names)} together, which have {len(axis):,} combinations; "
            f"at most {MAX_TIED:,} can be looked through"
        )
    allowed = array("Q")
    for number in range(len(axis)):
        values = dict(axis.choose(number))
        if not any(rule.bad(values) for rule in own):
            allowed.append(number)
    return Axis(axis.names, axis.sizes, allowed)


def split(number: int, axes: Sequence[Axis]) -> Iterator[tuple[Axis, int]]:
    """A number below the product of the axes as a number for each of them; the last goes round fastest."""
    for axis in reversed(axes):
        number, own = divmod(number, len(axis))
        yield axis, own
