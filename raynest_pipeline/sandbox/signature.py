"""Verify the ACS3-HMAC-SHA256 signature of a request, as Alibaba Cloud's gateway does.

The algorithm: canonical request = method, path, sorted query, signed headers, their names, hash of the body;
the string to sign is the algorithm's name and the hash of that; the signature its HMAC under the secret.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import parse_qsl, quote

ALGORITHM = "ACS3-HMAC-SHA256"
#: How far x-acs-date may be from the server's clock, seconds; a nonce is remembered for as long.
TIME_WINDOW_S = 15 * 60

_AUTHORIZATION = re.compile(r"(\S+) Credential=([^,]+),SignedHeaders=([^,]+),Signature=([0-9a-f]+)")
_MUST_SIGN = ("host", "x-acs-content-sha256", "x-acs-date", "x-acs-signature-nonce")


class SignatureError(Exception):
    """The request is refused before it is looked at: HTTP status, code and message of the refusal."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


@dataclass(frozen=True)
class SignedRequest:
    """What is signed of a request. `target` is the raw path and query; header names are lower case."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes


@dataclass
class Verifier:
    """Verifies requests against one access key; remembers each nonce for as long as it could be replayed."""

    access_key_id: str
    access_key_secret: str = field(repr=False)
    clock: Callable[[], float] = time.time
    _nonces: dict[str, float] = field(default_factory=dict)

    def verify(self, request: SignedRequest) -> None:
        """Return if the request is signed with the access key, fresh and new. Raises SignatureError."""
        algorithm, key_id, signed_headers, signature = _authorization(request.headers)
        if algorithm != ALGORITHM:
            message = f"The signature method {algorithm} is not supported; use {ALGORITHM}."
            raise SignatureError(400, "InvalidParameter.SignatureMethod", message)
        if key_id != self.access_key_id:
            raise SignatureError(404, "InvalidAccessKeyId.NotFound", "Specified access key is not found.")
        if "x-acs-security-token" in request.headers:
            message = "Specified SecurityToken is malformed."
            raise SignatureError(400, "InvalidSecurityToken.Malformed", message)
        names = signed_headers.split(";")
        unsigned = [name for name in _MUST_SIGN if name not in names or name not in request.headers]
        unsigned += [name for name in request.headers if name.startswith("x-acs-") and name not in names]
        unsigned += [name for name in names if name not in request.headers]
        if unsigned:
            message = f"The request signature does not cover {', '.join(sorted(set(unsigned)))}."
            raise SignatureError(400, "IncompleteSignature", message)
        self._check_date(request.headers["x-acs-date"])
        self._check_signature(request, names, signature)
        # Only a request with a right signature uses its nonce up; a forger can't burn other people's.
        self._use_nonce(request.headers["x-acs-signature-nonce"])

    def _check_signature(self, request: SignedRequest, names: list[str], signature: str) -> None:
        if hashlib.sha256(request.body).hexdigest() != request.headers["x-acs-content-sha256"]:
            raise SignatureError(400, "SignatureDoesNotMatch", "x-acs-content-sha256 is not the body's hash.")
        to_sign = string_to_sign(request, names)
        expected = hmac.new(self.access_key_secret.encode(), to_sign.encode(), hashlib.sha256).hexdigest()
        if not hmac.compare_digest(expected, signature):
            message = (
                f"Specified signature is not matched with our calculation. server string to sign is:{to_sign}"
            )
            raise SignatureError(400, "SignatureDoesNotMatch", message)

    def _check_date(self, text: str) -> None:
        try:
            sent = datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()
        except ValueError as error:
            message = "Specified time stamp or date value is not well formatted."
            raise SignatureError(400, "InvalidTimeStamp.Format", message) from error
        if abs(self.clock() - sent) > TIME_WINDOW_S:
            message = "Specified time stamp or date value is expired."
            raise SignatureError(400, "InvalidTimeStamp.Expired", message)

    def _use_nonce(self, nonce: str) -> None:
        now = self.clock()
        # A request dated up to a window ahead stays fresh for two windows.
        # The oldest come first, so that only the expired ones are looked at.
        while self._nonces and now - next(iter(self._nonces.values())) > 2 * TIME_WINDOW_S:
            del self._nonces[next(iter(self._nonces))]
        if nonce in self._nonces:
            message = "Specified signature nonce was used already."
            raise SignatureError(400, "SignatureNonceUsed", message)
        self._nonces[nonce] = now


def string_to_sign(request: SignedRequest, signed_headers: list[str]) -> str:
    """What both sides put under the HMAC."""
    path, _, query = request.target.partition("?")
    # On the wire a space is "+"; under the signature it is %20. Hence: parse, then quote again.
    pairs = sorted(parse_qsl(query, keep_blank_values=True))
    canonical_query = "&".join(f"{_quote(key)}={_quote(value)}" for key, value in pairs)
    canonical_headers = "".join(f"{name}:{request.headers[name].strip()}\n" for name in signed_headers)
    canonical = "\n".join(
        (
            request.method,
            path or "/",
            canonical_query,
            canonical_headers,
            ";".join(signed_headers),
            hashlib.sha256(request.body).hexdigest(),
        )
    )
    return f"{ALGORITHM}\n{hashlib.sha256(canonical.encode()).hexdigest()}"


def _authorization(headers: Mapping[str, str]) -> tuple[str, str, str, str]:
    text = headers.get("authorization")
    if text is None:
        raise SignatureError(400, "MissingAccessKeyId", "AccessKeyId is mandatory for this action.")
    match = _AUTHORIZATION.fullmatch(text)
    if match is None:
        message = "The request signature does not conform to Aliyun standards."
        raise SignatureError(400, "IncompleteSignature", message)
    algorithm, key_id, signed_headers, signature = match.groups()
    return algorithm, key_id, signed_headers, signature


def _quote(text: str) -> str:
    return quote(text, safe="~")
