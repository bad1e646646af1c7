"""Label and field selectors, in kubectl's syntax."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from raynest_pipeline.sandbox.kube.errors import bad_request

Object = dict[str, Any]
Predicate = Callable[[Object], bool]

_SET = re.compile(r"^\s*([\w./-]+)\s+(in|notin)\s*\(([^)]*)\)\s*$")
_EQUAL = re.compile(r"^\s*([\w./-]+)\s*(==|=|!=)\s*([^,=!()]*?)\s*$")
_EXISTS = re.compile(r"^\s*(!?)\s*([\w./-]+)\s*$")


def labels(selector: str) -> Predicate:
    """A test of an object's labels: `a=b,c!=d,e in (f,g),h notin (i),j,!k`. 400 when it can't be parsed."""
    tests = [_label_test(term) for term in _terms(selector)]
    return lambda obj: all(test(obj.get("metadata", {}).get("labels") or {}) for test in tests)


def _terms(selector: str) -> list[str]:
    return [term for term in re.split(r",(?![^()]*\))", selector) if term.strip()]


def _label_test(term: str) -> Callable[[dict[str, str]], bool]:
    if match := _SET.match(term):
        key, operator, listed = match.groups()
        values = {value.strip() for value in listed.split(",")}
        wanted = operator == "in"
        # `notin` also takes objects that lack the label.
        return lambda found: (found.get(key) in values) is wanted
    if match := _EQUAL.match(term):
        key, operator, value = match.groups()
        same = operator != "!="
        return lambda found: (found.get(key) == value) is same
    if match := _EXISTS.match(term):
        absent, key = match.groups()
        return lambda found: (key in found) is not bool(absent)
    raise bad_request(f"unable to parse requirement: found {term!r}, expected a label selector")


def fields(selector: str, allowed: tuple[str, ...] = ()) -> Predicate:
    """A test of fields: `metadata.name=x,status.phase!=Running`.

    `allowed` lists what the resource supports beside metadata.name and metadata.namespace (`*`: anything);
    another field answers 400, as a real server does."""
    tests = []
    for term in _terms(selector):
        match = re.match(r"^([\w.]+)(==|=|!=)(.*)$", term.strip())
        if match is None:
            raise bad_request(f"invalid selector: {term!r}; can't understand it")
        path, operator, value = match.groups()
        known = path in ("metadata.name", "metadata.namespace", *allowed)
        if not known and "*" not in allowed:
            raise bad_request(f"field label not supported: {path}")
        tests.append((path, value, operator != "!="))
    return lambda obj: all((str(lookup(obj, path) or "") == value) is same for path, value, same in tests)


def lookup(obj: Any, path: str) -> Any:
    """The value at a dotted path of an object, None where there's nothing."""
    for part in path.split("."):
        if not isinstance(obj, dict):
            return None
        obj = obj.get(part)
    return obj
