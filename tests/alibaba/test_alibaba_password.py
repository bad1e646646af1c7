"""The login password meets the template's rule (facts, 2.1)."""

import re

from hypothesis import given
from hypothesis import strategies as st

from raynest_pipeline.alibaba.password import LENGTH, generate_password, meets_rule

PUBLISHED_DEFAULT = "computenest*12345"


def test_a_generated_password_meets_the_rule() -> None:
    passwords = {generate_password() for _ in range(300)}
    assert len(passwords) == 300
    for password in passwords:
        assert len(password) == LENGTH
        assert meets_rule(password)
        assert all(re.search(pattern, password) for pattern in ("[a-z]", "[A-Z]", "[0-9]", "[^A-Za-z0-9]"))
        assert not re.search(r"[\s\"'\\%&$`]", password), "needs quoting somewhere"
    assert PUBLISHED_DEFAULT not in passwords


def test_the_rule() -> None:
    assert meets_rule("Abcdefg1")
    assert meets_rule("abc-1234")
    assert not meets_rule("Abcdef1"), "too short"
    assert not meets_rule("Abcdefg1" * 4), "too long"
    assert not meets_rule("abcdefgh1"), "two classes"
    assert not meets_rule("Abcdefg1\n"), "not in the alphabet"
    assert not meets_rule("Abcdefg1ü")


@given(st.text(min_size=0, max_size=40))
def test_the_rule_agrees_with_its_words(text: str) -> None:
    kinds = ["[a-z]", "[A-Z]", "[0-9]", r"[()`~!@#$%^&*_\-+=|{}\[\]:;<>,.?/]"]
    present = sum(bool(re.search(kind, text)) for kind in kinds)
    known = all(any(re.fullmatch(kind, char) for kind in kinds) for char in text)
    assert meets_rule(text) == (8 <= len(text) <= 30 and known and present >= 3)
