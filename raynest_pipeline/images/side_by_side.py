"""A function over many items in a few threads: stores answer over networks, and codecs let go of the lock."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

THREADS = 8
AHEAD = 64
"""Items under way at a time, so that memory doesn't grow with their number."""


def side_by_side(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """`work` of each item, in order; the items are drawn in the calling thread."""
    rest = iter(items)
    with ThreadPoolExecutor(THREADS) as pool:
        while group := list(islice(rest, AHEAD)):
            yield from pool.map(work, group)
