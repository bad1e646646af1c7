"""Take secrets out of text that came from the cloud or its SDK.

The workers' login password travels in the query string of CreateServiceInstance (facts, section 12), so it
can come back in any message: as JSON, as Python, percent-encoded once or twice.
"""

import json
import re
from collections.abc import Iterable
from urllib.parse import quote, quote_plus

HIDDEN = "***"

_QUOTE = r"""(?:\\*["']|%(?:25)*2[27])"""
_SPACE = r"(?:[\s+]|%(?:25)*20)*"
_SECRET_NAMES = (
    "LoginPassword|AccessKeySecret|SecurityToken|x-acs-security-token|Signature(?!Nonce|Method|Version)"
)
# name, closing quote, separator, opening quote, value up to the next quote.
_QUOTED = re.compile(
    rf"({_SECRET_NAMES})({_QUOTE}?\s*(?::|=|%(?:25)*3[AD]){_SPACE}{_QUOTE})((?:(?!{_QUOTE}).)*)",
    re.IGNORECASE | re.DOTALL,
)
_BARE = re.compile(rf"({_SECRET_NAMES})(\s*(?:=|:)\s*)([^\s&,;\"'\\%*]+)", re.IGNORECASE)


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """The text without the given secrets in any of their encodings, and without values of secret fields."""
    for form in sorted({form for secret in secrets for form in _forms(secret)}, key=len, reverse=True):
        text = text.replace(form, HIDDEN)
    text = _QUOTED.sub(rf"\g<1>\g<2>{HIDDEN}", text)
    return _BARE.sub(rf"\g<1>\g<2>{HIDDEN}", text)


def _forms(secret: str) -> set[str]:
    if not secret:
        return set()
    escaped = {secret, json.dumps(secret)[1:-1], json.dumps(json.dumps(secret)[1:-1])[1:-1]}
    once = {
        encode(form, safe=safe)
        for form in escaped
        for encode in (quote, quote_plus)
        for safe in ("", "~", "/")
    }
    twice = {quote(form, safe="") for form in once}
    return escaped | once | twice
