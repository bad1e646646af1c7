"""Models of ModelScope (modelscope.cn), through its HTTP API: its own package is heavy, and needs none of it.

What the API answers was read from its SDK (modelscope/hub/api.py, file_download.py) and from other clients,
not from the service itself. So each answer is checked, and one that looks different ends in an error that
says so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry

from raynest_pipeline.serving.modelfiles import RemoteFile, SourceFailed
from raynest_pipeline.serving.modelname import ModelName, one_line, without_secrets

MODELSCOPE_ENDPOINT = "https://www.modelscope.cn"
DEFAULT_REVISION = "master"
TOKEN_VARIABLE = "MODELSCOPE_API_TOKEN"
TIMEOUT_S = (10.0, 60.0)
"""Seconds to connect, and between two pieces of an answer."""
ATTEMPTS = 5
"""For one file; each goes on where the last one broke off."""
CHUNK = 1 << 17
"""Bytes written at a time: what a broken connection costs at most."""


class ModelScopeRepository:
    """A repository of ModelScope. One session, which threads may share for plain GETs."""

    def __init__(self, name: ModelName, endpoint: str | None, environ: Mapping[str, str]) -> None:
        """A token for private models is taken from MODELSCOPE_API_TOKEN."""
        base = (endpoint or MODELSCOPE_ENDPOINT).rstrip("/")
        self._api = f"{base}/api/v1/models/{name.place}"
        self.where = without_secrets(f"{base}/models/{name.place}")
        self.revision = name.revision or DEFAULT_REVISION
        self._session = new_session(base, environ.get(TOKEN_VARIABLE))

    def list(self) -> Sequence[RemoteFile]:
        """All files of the revision, with their SHA-256. Raises SourceFailed."""
        query = {"Revision": self.revision, "Recursive": "True"}
        try:
            response = self._session.get(f"{self._api}/repo/files", params=query, timeout=TIMEOUT_S)
        except requests.RequestException as error:
            raise SourceFailed(f"couldn't connect to {self.where}: {one_line(error)}") from error
        return read_listing(response, self.revision)

    def fetch(self, file: RemoteFile, target: Path) -> None:
        """Download one file, going on after each break.

        Raises SourceFailed, also if its SHA-256 is another.
        """
        reason = ""
        for _ in range(ATTEMPTS):
            have = target.stat().st_size if target.exists() else 0
            if have < file.size or not target.exists():
                try:
                    self._append(file, target, have)
                except requests.RequestException as error:
                    reason = one_line(error)
            if target.exists() and target.stat().st_size >= file.size:
                verify(file, target)
                return
        raise SourceFailed(f"{file.path} broke off {ATTEMPTS} times: {reason or 'the answer was too short'}")

    def _append(self, file: RemoteFile, target: Path, have: int) -> None:
        query = {"Revision": self.revision, "FilePath": file.path}
        headers = {"Range": f"bytes={have}-"} if have else {}
        with self._session.get(
            f"{self._api}/repo", params=query, headers=headers, stream=True, timeout=TIMEOUT_S
        ) as response:
            if response.status_code not in (200, 206):
                raise SourceFailed(f"{file.path}: {reason_of(response)}")
            # A server that doesn't know ranges sends the whole file with 200.
            with target.open("ab" if response.status_code == 206 else "wb") as stream:
                for piece in response.iter_content(CHUNK):
                    stream.write(piece)


def new_session(base: str, token: str | None) -> requests.Session:
    """A session that tries again while the service is busy, and shows the token to the service alone."""
    session = requests.Session()
    retry = Retry(
        total=3, backoff_factor=0.5, status_forcelist=(429, 500, 502, 503, 504), raise_on_status=False
    )
    for prefix in ("https://", "http://"):
        session.mount(prefix, HTTPAdapter(max_retries=retry))
    session.headers["User-Agent"] = "raynest"
    # A compressed answer could not be gone on with in the middle.
    session.headers["Accept-Encoding"] = "identity"
    if token:
        # As the SDK sends it. A cookie of that host: redirects to the file servers go without.
        session.cookies.set("m_session_id", token, domain=urlsplit(base).hostname or "", path="/")
    return session


def read_listing(response: requests.Response, revision: str) -> list[RemoteFile]:
    """The files of an answer of `repo/files`. Raises SourceFailed."""
    if response.status_code != 200:
        raise SourceFailed(reason_of(response))
    data = _body(response).get("Data")
    if not isinstance(data, dict) or "Files" not in data:
        raise SourceFailed(
            f"its answer has no Data.Files, so its API has changed: {one_line(response.text, 100)}"
        )
    if data["Files"] is None:
        # An unknown revision is no error there.
        raise SourceFailed(f"it has no revision {revision!r}")
    try:
        return [
            RemoteFile(str(item["Path"]), int(item["Size"]), str(item.get("Sha256") or ""))
            for item in data["Files"]
            if item.get("Type") != "tree"
        ]
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise SourceFailed(f"its listing is not as expected ({error!r}), so its API has changed") from error


def reason_of(response: requests.Response) -> str:
    """Why an answer is no success, in the service's own words where it has some."""
    try:
        told = str(_body(response).get("Message") or "")
    except SourceFailed:
        told = ""
    meaning = {
        401: "it wants a token: set MODELSCOPE_API_TOKEN",
        403: "it may not be read: accept its terms on its page and set MODELSCOPE_API_TOKEN",
        404: "repository not found: there is no such model, or it is private and wants MODELSCOPE_API_TOKEN",
    }.get(response.status_code, "")
    words = [f"HTTP {response.status_code}", meaning, one_line(told, 200)]
    return ", ".join(word for word in words if word)


def _body(response: requests.Response) -> dict[str, Any]:
    try:
        body = response.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise SourceFailed(f"its answer is no JSON object: {one_line(response.text, 100)}")
    return body


def verify(file: RemoteFile, target: Path) -> None:
    """Raises SourceFailed, and drops the file, if its SHA-256 is not the one of the listing."""
    if not file.mark:
        return
    with target.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != file.mark.lower():
        target.unlink()
        raise SourceFailed(f"{file.path} has the SHA-256 {found}, its listing says {file.mark}")
