"""Read the cloud's answers field by field, each with its type checked.

The SDKs check nothing: `{}` gives a model full of None, a wrong type inside an answer gives a response
without a body and without an error (facts 9.1). A field that is used is therefore read through `Answer`.
"""

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

from raynest_pipeline.alibaba.errors import malformed

T = TypeVar("T")

LIST_BODY = "body"
"""Name under which an answer that is a JSON list shows its elements."""
PAGE_LIMIT = 200
"""More pages than that are a server that goes in circles."""


class Answer:
    """One JSON object of an answer. Every method raises `CloudError` for a field of the wrong kind."""

    def __init__(self, fields: Mapping[str, Any], operation: str, path: str = "") -> None:
        self.operation = operation
        self._fields = fields
        self._path = path

    def bad(self, key: str, problem: str) -> Exception:
        """The error for a field of this object."""
        return malformed(self.operation, f"The field {self._path}{key} {problem}.")

    def has(self, key: str) -> bool:
        """Whether the field is there and not null."""
        return self._fields.get(key) is not None

    def text(self, key: str) -> str:
        """A text; "" when absent."""
        value = self._fields.get(key)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise self.bad(key, f"is no text but {type(value).__name__}")
        return value

    def required(self, key: str) -> str:
        """A text that must be there and not empty."""
        value = self.text(key)
        if not value:
            raise self.bad(key, "is missing")
        return value

    def number(self, key: str) -> float | None:
        """A number, also one written as text; None when absent."""
        value = self._fields.get(key)
        if value is None or value == "":
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise self.bad(key, f"is no number but {type(value).__name__}")
        try:
            return float(value)
        except ValueError:
            raise self.bad(key, "is no number") from None

    def integer(self, key: str) -> int | None:
        """A whole number; None when absent."""
        value = self.number(key)
        if value is None:
            return None
        # Also false for NaN and the infinities, which Python's JSON reader lets in.
        if not value.is_integer():
            raise self.bad(key, "is no whole number")
        return int(value)

    def flag(self, key: str) -> bool | None:
        """A truth value; None when absent."""
        value = self._fields.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.bad(key, f"is no truth value but {type(value).__name__}")
        return value

    def child(self, key: str) -> "Answer":
        """An object; empty when absent."""
        value = self._fields.get(key)
        if value is None:
            value = {}
        if not isinstance(value, Mapping):
            raise self.bad(key, f"is no object but {type(value).__name__}")
        return Answer(value, self.operation, f"{self._path}{key}.")

    def children(self, key: str) -> list["Answer"]:
        """A list of objects; empty when absent."""
        return [
            Answer(self._element(key, item, dict), self.operation, f"{self._path}{key}[{index}].")
            for index, item in enumerate(self._list(key))
        ]

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts; empty when absent."""
        return tuple(self._element(key, item, str) for item in self._list(key))

    def mapping(self, key: str) -> Mapping[str, Any]:
        """An object of free form; empty when absent."""
        return self.child(key)._fields

    def json(self, key: str) -> Any:
        """What a text that holds JSON holds; None when the text is absent or empty."""
        text = self.text(key)
        if not text:
            return None
        try:
            return json.loads(text)
        except ValueError:
            raise self.bad(key, "holds no valid JSON") from None

    def json_object(self, key: str) -> Mapping[str, Any]:
        """The object in a text that holds JSON; empty when the text is absent, empty or null."""
        value = self.json(key)
        if value is not None and not isinstance(value, Mapping):
            raise self.bad(key, "holds no JSON object")
        return value or {}

    def json_list(self, key: str) -> list[Any]:
        """The list in a text that holds JSON; empty when the text is absent, empty or null."""
        value = self.json(key)
        if value is not None and not isinstance(value, list):
            raise self.bad(key, "holds no JSON list")
        return value or []

    def moment(self, key: str) -> datetime | None:
        """A time in UTC; None when absent, or in a form that isn't ISO 8601."""
        try:
            moment = datetime.fromisoformat(self.text(key))
        except ValueError:
            return None
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)

    def tags(self, key: str, name: str = "Key", value: str = "Value") -> dict[str, str]:
        """A list of key-value pairs as a dictionary."""
        return {item.required(name): item.text(value) for item in self.children(key)}

    def _list(self, key: str) -> list[Any]:
        value = self._fields.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.bad(key, f"is no list but {type(value).__name__}")
        return value

    def _element(self, key: str, item: Any, kind: type[T]) -> T:
        if not isinstance(item, kind):
            raise self.bad(key, f"has an element that is {type(item).__name__}")
        return item


def answer_of(response: Any, operation: str) -> Answer:
    """The body of an SDK response.

    Raises:
        CloudError: It has none, or one that is neither object nor list.
    """
    from darabonba.model import DaraModel

    # What the SDK could not read it keeps as it came; only then is there something here.
    raw = DaraModel.to_map(response)
    body = (response.to_map() if raw is None else raw).get("body")
    if isinstance(body, Mapping):
        return Answer(body, operation)
    if isinstance(body, list):
        return Answer({LIST_BODY: body}, operation)
    raise malformed(operation, "The answer is no JSON object.")


def rpc(answer: Answer) -> Answer:
    """The answer, after making sure that it is one.

    Every RPC answer has a RequestId. In `{}` every list would read as empty, and an empty list of what
    exists means: buy one.
    """
    answer.required("RequestId")
    return answer


def all_by_token(fetch: Callable[[str | None], tuple[list[T], str]]) -> list[T]:
    """All pages of a list that names the next page by a token; `fetch` gives a page and that token."""
    items: list[T] = []
    token: str | None = None
    for _ in range(PAGE_LIMIT):
        page, following = fetch(token)
        items += page
        if not following or following == token:
            break
        token = following
    return items


def all_by_number(fetch: Callable[[int], tuple[list[T], int]]) -> list[T]:
    """All pages of a numbered list; `fetch` gives a page's items and the total count."""
    items: list[T] = []
    for number in range(1, PAGE_LIMIT + 1):
        page, total = fetch(number)
        items += page
        if not page or len(items) >= total:
            break
    return items
