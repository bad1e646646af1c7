"""A base URL together with what is needed to talk to it: the one road to everything behind the API server."""

import ssl as tls
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from urllib.parse import quote, urlencode, urlsplit

import httpx

from raynest_pipeline.errors import InputError


@dataclass(frozen=True)
class HttpTarget:
    """A base URL and what is needed to talk to it: for httpx (`client`) and aiohttp (the fields)."""

    base_url: str
    """Without a trailing slash."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """To be sent with every request; may hold a token."""
    ssl: tls.SSLContext | None = field(default=None, repr=False)
    """None: the HTTP library's own verification."""
    server_hostname: str | None = None
    """Name to verify the certificate against, where it is not the URL's host."""

    @classmethod
    def plain(cls, url: str) -> "HttpTarget":
        """A target without credentials.

        Raises:
            InputError: `url` is not an http(s) URL.
        """
        try:
            parts = urlsplit(url)
            valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            valid = False
        if not valid:
            raise InputError(f"{url!r} is not an http(s) URL.", fix="Write it like http://HOST:8000.")
        return cls(base_url=url.rstrip("/"))

    @property
    def loopback(self) -> bool:
        """Whether the host is this machine: then a configured HTTP proxy must be left out."""
        return is_loopback(self.base_url)

    def url(self, path: str, params: Mapping[str, str | int | float] | None = None) -> str:
        """The full URL of `path` ("/imagine"), with `params` percent-encoded."""
        # quote, not quote_plus: the measured proxy passes %20 as sent, and so did the walkthrough's client.
        query = f"?{urlencode(params, quote_via=quote)}" if params else ""
        return f"{self.base_url}/{path.lstrip('/')}{query}"

    def with_headers(self, headers: Mapping[str, str]) -> "HttpTarget":
        """The same target with more headers."""
        return replace(self, headers={**self.headers, **headers})

    def client(self, timeout: float = 30.0) -> httpx.Client:
        """A new httpx client; the caller closes it.

        Args:
            timeout: Seconds for each read; connecting is given at most 10.
        """
        hooks = {"request": [self._set_server_name]} if self.server_hostname else {}
        return httpx.Client(
            headers=dict(self.headers),
            verify=self.ssl if self.ssl is not None else True,
            timeout=httpx.Timeout(timeout, connect=min(timeout, 10.0)),
            trust_env=not self.loopback,
            event_hooks=hooks,
        )

    def _set_server_name(self, request: httpx.Request) -> None:
        request.extensions["sni_hostname"] = self.server_hostname


def is_loopback(url: str) -> bool:
    """Whether a URL leads to this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
