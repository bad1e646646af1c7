"""Work in a few threads: in order, at once, and never far ahead."""

import threading
from collections.abc import Iterator

import pytest

from raynest_pipeline.images import side_by_side as module
from raynest_pipeline.images.side_by_side import side_by_side


def test_the_order_is_that_of_the_items() -> None:
    assert list(side_by_side(lambda n: n * n, range(200))) == [n * n for n in range(200)]
    assert list(side_by_side(str, [])) == []


def test_several_are_under_way_at_once() -> None:
    together = threading.Barrier(module.THREADS)
    assert len(list(side_by_side(lambda _: together.wait(40), range(module.THREADS)))) == module.THREADS


def test_no_more_is_drawn_than_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AHEAD", 3)
    drawn: list[int] = []

    def items() -> Iterator[int]:
        for number in range(10):
            drawn.append(number)
            yield number

    results = side_by_side(lambda n: n, items())
    assert next(results) == 0 and drawn == [0, 1, 2]


def test_an_error_comes_through() -> None:
    with pytest.raises(ZeroDivisionError):
        list(side_by_side(lambda n: 1 // n, [1, 0, 1]))
