"""The encodings of the Alibaba Cloud protocols: request parameters and times."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

from raynest_pipeline.sandbox.cloud.errors import invalid, missing

_CHINA = timezone(timedelta(hours=8))


@dataclass(frozen=True)
class Params:
    """Request parameters as they come in a query: flat text, lists numbered from 1 with dotted names."""

    values: Mapping[str, str]

    def text(self, name: str, default: str = "") -> str:
        """A parameter, or the default when it is absent or empty."""
        return self.values.get(name) or default

    def required(self, name: str) -> str:
        """A parameter that must be there. Raises CloudError MissingParameter."""
        value = self.values.get(name)
        if not value:
            raise missing(name)
        return value

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        """A whole number in low..high. Raises CloudError InvalidParameter."""
        text = self.values.get(name)
        if not text:
            return default
        if not re.fullmatch(r"-?[0-9]+", text) or not low <= int(text) <= high:
            raise invalid(name, f"must be a whole number from {low} to {high}")
        return int(text)

    def boolean(self, name: str) -> bool:
        """A truth value; the Python SDK sends "True" and "False". Absent is False."""
        text = self.text(name, "false").lower()
        if text not in ("true", "false"):
            raise invalid(name, "must be true or false")
        return text == "true"

    def json_object(self, name: str) -> dict[str, Any]:
        """A JSON object that travels as text; absent is empty."""
        try:
            value = json.loads(self.text(name, "{}"))
        except ValueError as error:
            raise invalid(name, "is not valid JSON") from error
        if not isinstance(value, dict):
            raise invalid(name, "must be a JSON object")
        return value

    def items(self, name: str) -> list[str]:
        """A list of texts: Name.1, Name.2, ..."""
        return [fields[""] for fields in self.structs(name) if "" in fields]

    def structs(self, name: str) -> list[dict[str, str]]:
        """A list of objects: Name.1.Key, Name.1.Value.1, ... as [{"Key": .., "Value.1": ..}, ...]."""
        found: dict[int, dict[str, str]] = {}
        pattern = re.compile(rf"{re.escape(name)}\.(\d+)(?:\.(.+))?")
        for key, value in self.values.items():
            match = pattern.fullmatch(key)
            if match:
                found.setdefault(int(match[1]), {})[match[2] or ""] = value
        return [found[number] for number in sorted(found)]

    def tags(self) -> dict[str, str]:
        """Tag.N.Key and Tag.N.Value as a dictionary."""
        return {each["Key"]: each.get("Value", "") for each in self.structs("Tag") if "Key" in each}

    def filters(self) -> dict[str, list[str]]:
        """Filter.N.Name and Filter.N.Value.M as a dictionary of lists."""
        return {
            each["Name"]: [value for key, value in sorted(each.items()) if key.startswith("Value")]
            for each in self.structs("Filter")
            if "Name" in each
        }


def utc(seconds: float) -> str:
    """A time as most products write it: 2025-02-24T10:37:49Z."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def china(seconds: float) -> str:
    """A time as Container Service writes it: 2025-02-24T18:38:02+08:00."""
    return datetime.fromtimestamp(seconds, _CHINA).isoformat(timespec="seconds")


def compact(value: Any) -> str:
    """JSON inside JSON: several fields of the answers are text that holds JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def tag_list(tags: Mapping[str, str]) -> list[dict[str, str]]:
    """Tags as [{"Key": .., "Value": ..}]."""
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def has_tags(tags: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Whether all wanted tags are there; a wanted tag without a value matches any value."""
    return all(key in tags and value in ("", tags[key]) for key, value in wanted.items())


def page_by_token(
    items: Iterable[dict[str, Any]], params: Params, *, most: int = 100
) -> tuple[list[dict[str, Any]], str, int]:
    """One page by MaxResults (default 20) and NextToken: its items, the next token or "", and MaxResults.

    `most` caps a page below MaxResults: a service may always return fewer and a token.
    """
    everything = list(items)
    size = params.integer("MaxResults", 20, 1, 100)
    token = params.text("NextToken", "page-0")
    match = re.fullmatch(r"page-(\d+)", token)
    if match is None:
        raise invalid("NextToken", "is not a token of this list")
    start = int(match[1])
    end = start + min(size, most)
    following = f"page-{end}" if end < len(everything) else ""
    return everything[start:end], following, size


def page_by_number(
    items: Iterable[dict[str, Any]], params: Params, *, size: str = "PageSize", number: str = "PageNumber"
) -> tuple[list[dict[str, Any]], int, int]:
    """One page by size (default 10) and number: its items, the page's number and the page's size."""
    page_size = params.integer(size, 10, 1, 100)
    page_number = params.integer(number, 1, 1, 1_000_000)
    start = (page_number - 1) * page_size
    return list(items)[start : start + page_size], page_number, page_size
