"""The arithmetic under prompt sets: permutations, axes, shares, products and samples."""

import itertools
import math
import tracemalloc
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raynest_pipeline.images.names import MAX_NAME, name_problem
from raynest_pipeline.images.sets import space
from raynest_pipeline.images.sets.expansion import MAX_STRATA, Product, Sample, TooManyStrataError, apportion
from raynest_pipeline.images.sets.ids import id_of, tokens_of
from raynest_pipeline.images.sets.permutation import permuted
from raynest_pipeline.images.sets.space import Axis, Rule, TiedError, axes_of, split


class TestPermutation:
    @given(st.integers(1, 300), st.binary(max_size=70))
    def test_it_is_one_to_one(self, size: int, key: bytes) -> None:
        assert sorted(permuted(at, size, key) for at in range(size)) == list(range(size))

    @given(st.integers(1, 10**40), st.data())
    def test_it_stays_inside_however_large(self, size: int, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, size - 1))
        assert 0 <= permuted(at, size, b"k") < size

    def test_it_is_the_same_everywhere(self) -> None:
        """Prompts of a set must not change with the machine or the release: these values are the contract."""
        assert [permuted(at, 10, b"a") for at in range(10)] == [0, 7, 2, 4, 9, 3, 1, 6, 5, 8]
        assert permuted(123_456_789, 10**12, b"raynest") == 401_065_470_211

    @pytest.mark.parametrize("index", [-1, 5])
    def test_outside_is_an_error(self, index: int) -> None:
        with pytest.raises(IndexError):
            permuted(index, 5, b"")

    @pytest.mark.parametrize("size", [2, 3, 5, 9, 17])
    def test_each_comes_first_about_equally_often(self, size: int) -> None:
        """Pearson's chi-square; 60 would be beyond 1 in 10 million for 16 degrees of freedom."""
        draws = 2000
        often = Counter(permuted(0, size, b"%d" % key) for key in range(draws))
        chi2 = sum((often[n] - draws / size) ** 2 / (draws / size) for n in range(size))
        assert chi2 < 60

    def test_neighbours_do_not_stay_neighbours(self) -> None:
        order = [permuted(at, 1000, b"x") for at in range(1000)]
        assert sum(abs(a - b) == 1 for a, b in itertools.pairwise(order)) < 20


def same(one: str, other: str) -> Rule:
    return Rule((one, other), lambda at: at[one] == at[other])


class TestAxes:
    def test_without_rules_each_variable_is_its_own(self) -> None:
        axes = axes_of({"a": 2, "b": 3}, [])
        assert [(axis.names, len(axis)) for axis in axes] == [(("a",), 2), (("b",), 3)]

    def test_rules_tie_what_they_name_also_in_a_chain(self) -> None:
        axes = axes_of({"a": 3, "b": 2, "c": 3, "d": 3}, [same("a", "c"), same("c", "d")])
        assert [axis.names for axis in axes] == [("a", "c", "d"), ("b",)]
        assert len(axes[0]) == sum(a != c != d for a, c, d in itertools.product(range(3), repeat=3))

    def test_a_rule_may_leave_nothing(self) -> None:
        (axis,) = axes_of({"a": 2}, [Rule(("a",), lambda at: True)])
        assert len(axis) == 0

    def test_too_much_to_look_through(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(space, "MAX_TIED", 8)
        assert len(axes_of({"a": 2, "b": 4, "c": 100}, [same("a", "b")])[0]) == 6
        with pytest.raises(TiedError, match="tie a, b together, which have 9 combinations"):
            axes_of({"a": 3, "b": 3}, [same("a", "b")])

    @given(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    def test_the_numbers_are_the_product_in_order(self, sizes: list[int]) -> None:
        names = [f"v{n}" for n in range(len(sizes))]
        axes = axes_of(dict(zip(names, sizes, strict=True)), [])
        found = []
        for number in range(math.prod(sizes)):
            chosen = {k: v for axis, own in split(number, axes) for k, v in axis.choose(own)}
            found.append(tuple(chosen[name] for name in names))
        assert found == list(itertools.product(*map(range, sizes)))


weights = st.lists(st.fractions(min_value=Fraction(1, 100), max_value=50), min_size=1, max_size=12)


class TestApportion:
    @given(weights, st.data())
    def test_it_gives_out_everything_within_the_capacities(
        self, shares: list[Fraction], data: st.DataObject
    ) -> None:
        capacities = [data.draw(st.integers(1, 30)) for _ in shares]
        count = data.draw(st.integers(0, sum(capacities)))
        quotas = apportion(shares, capacities, count, data.draw(st.binary(max_size=8)))
        assert sum(quotas) == count
        assert all(0 <= quota <= most for quota, most in zip(quotas, capacities, strict=True))

    @given(weights, st.integers(0, 500))
    def test_with_room_each_gets_its_share_up_to_one(self, shares: list[Fraction], count: int) -> None:
        quotas = apportion(shares, [10**9] * len(shares), count, b"k")
        for quota, share in zip(quotas, shares, strict=True):
            assert abs(quota - share / sum(shares) * count) < 1

    def test_a_small_share_gets_its_turn_as_often_as_it_should(self) -> None:
        """One in ten, asked for three at a time, with 300 different keys: 90 of 900 expected."""
        shares = [Fraction(9), Fraction(1)]
        given_out = sum(apportion(shares, [99, 99], 3, b"%d" % key)[1] for key in range(300))
        assert 60 <= given_out <= 120


def evenly(_: Axis) -> None:
    return None


class TestProductAndSample:
    SPACES = ([Axis(("a",), (3,)), Axis(("b",), (2,))], [Axis(("a",), (3,))])

    def test_a_product_lists_template_after_template(self) -> None:
        product = Product(self.SPACES)
        assert product.total == 9
        found = [product.choice(number) for number in range(9)]
        assert found[:3] == [(0, {"a": 0, "b": 0}), (0, {"a": 0, "b": 1}), (0, {"a": 1, "b": 0})]
        assert found[6:] == [(1, {"a": 0}), (1, {"a": 1}), (1, {"a": 2})]

    def test_a_sample_of_everything_is_everything_once(self) -> None:
        sample = Sample(self.SPACES, [Fraction(1), Fraction(9)], evenly, 9, b"k")
        product = Product(self.SPACES)
        every = {(t, *sorted(v.items())) for t, v in map(product.choice, range(9))}
        assert {(t, *sorted(v.items())) for t, v in map(sample.choice, range(9))} == every

    def test_templates_share_by_weight(self) -> None:
        large = [[Axis(("a",), (1000,))], [Axis(("b",), (1000,))]]
        sample = Sample(large, [Fraction(3), Fraction(1)], evenly, 100, b"k")
        often = Counter(sample.choice(number)[0] for number in range(len(sample)))
        assert often == {0: 75, 1: 25}

    def test_values_share_by_weight_and_the_order_is_shuffled(self) -> None:
        axes = [Axis(("a",), (2,)), Axis(("b",), (500,))]

        def weigh(axis: Axis) -> list[Fraction] | None:
            return [Fraction(4), Fraction(1)] if axis.names == ("a",) else None

        sample = Sample([axes], [Fraction(1)], weigh, 100, b"k")
        drawn = [sample.choice(number)[1] for number in range(100)]
        assert Counter(one["a"] for one in drawn) == {0: 80, 1: 20}
        assert len({(one["a"], one["b"]) for one in drawn}) == 100
        assert 2 <= sum(one["a"] for one in drawn[:50]) <= 18

    def test_a_small_sample_begins_a_larger_one(self) -> None:
        axes = [[Axis(("a",), (10**6,)), Axis(("b",), (10**6,))]]
        small, large = (Sample(axes, [Fraction(1)], evenly, count, b"k") for count in (5, 5000))
        assert [small.choice(n) for n in range(5)] == [large.choice(n) for n in range(5)]

    def test_too_many_weighted_values(self) -> None:
        axes = [[Axis(("a",), (1000,)), Axis(("b",), (1000,))]]
        with pytest.raises(TooManyStrataError, match=f"{MAX_STRATA:,}"):
            Sample(axes, [Fraction(1)], lambda axis: [Fraction(n + 1) for n in range(len(axis))], 5, b"k")

    def test_a_sample_of_ten_million_out_of_a_googol_takes_no_memory(self) -> None:
        axes = [[Axis((f"v{n}",), (10,)) for n in range(100)]]
        tracemalloc.start()
        try:
            sample = Sample(axes, [Fraction(1)], evenly, 10_000_000, b"k")
            seen = {tuple(sample.choice(n)[1].values()) for n in range(0, 10_000_000, 1_000_000)}
            assert len(seen) == 10
            assert tracemalloc.get_traced_memory()[1] < 500_000
        finally:
            tracemalloc.stop()

    @settings(max_examples=60, deadline=None)
    @given(st.data())
    def test_nothing_is_drawn_twice_whatever_the_weights(self, data: st.DataObject) -> None:
        sizes = data.draw(st.lists(st.lists(st.integers(1, 4), max_size=3), min_size=1, max_size=3))
        spaces = [[Axis((f"v{n}",), (size,)) for n, size in enumerate(one)] for one in sizes]
        weighted = {
            id(axis): data.draw(
                st.none() | st.lists(st.integers(1, 9), min_size=len(axis), max_size=len(axis))
            )
            for axes in spaces
            for axis in axes
        }

        def weigh(axis: Axis) -> list[Fraction] | None:
            given_weights = weighted[id(axis)]
            return None if given_weights is None else [Fraction(w) for w in given_weights]

        total = Product(spaces).total
        count = data.draw(st.integers(1, total))
        shares = [Fraction(data.draw(st.integers(1, 9))) for _ in spaces]
        sample = Sample(spaces, shares, weigh, count, data.draw(st.binary(max_size=5)))
        drawn = {(t, *sorted(v.items())) for t, v in map(sample.choice, range(count))}
        assert len(sample) == count == len(drawn)


class TestIds:
    def test_plain_words_are_their_own_names(self) -> None:
        assert tokens_of("place", ["on the left", "Top!", "07"]) == ["on-the-left", "top", "07"]

    def test_an_empty_value_has_a_name(self) -> None:
        assert tokens_of("mood", ["", "sad"]) == ["no-mood", "sad"]

    def test_names_stay_when_values_are_added(self) -> None:
        few, more = tokens_of("a", ["red", "blue"]), tokens_of("a", ["pink", "red", "猫", "blue"])
        assert few == [more[1], more[3]]

    @given(st.lists(st.text(max_size=60), unique_by=str.strip, max_size=12))
    def test_names_differ_and_are_safe(self, values: list[str]) -> None:
        words = [value.strip() for value in values]
        tokens = tokens_of("v", words)
        assert len(set(tokens)) == len(tokens)
        assert all(name_problem(token) is None and "_" not in token for token in tokens)

    def test_values_whose_eight_digits_are_the_same_get_sixteen(self) -> None:
        """Two of the first million pairs of Chinese characters; both begin with 42669289."""
        tokens = tokens_of("a", ["丌呗", "丏墊", "猫"])
        assert [len(token) for token in tokens] == [16, 16, 8]
        assert {token[:8] for token in tokens[:2]} == {"42669289"}
        assert len(set(tokens)) == 3

    def test_a_value_that_looks_like_another_s_digits_does_not_clash(self) -> None:
        (digits, _) = tokens_of("a", ["red!", "red?"])
        assert len(set(tokens_of("a", ["red!", "red?", digits]))) == 3

    def test_a_windows_device_is_no_name(self) -> None:
        assert tokens_of("a", ["con"])[0].startswith("con-")

    @given(
        st.lists(st.from_regex(r"[a-z0-9]{1,32}", fullmatch=True), min_size=1, max_size=12), st.integers(1, 9)
    )
    def test_ids_fit_and_long_ones_still_differ(self, tokens: list[str], copy: int) -> None:
        one, other = id_of(tokens, f"-{copy}"), id_of([*tokens, "x"], f"-{copy}")
        assert name_problem(one) is None and len(one) <= MAX_NAME
        assert one != other and one.endswith(f"-{copy}")
