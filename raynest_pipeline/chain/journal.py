"""Intentions, written down before the cloud hears of them.

The world is the state, with one exception that cannot be looked up: "I was about to buy, with this
token, and do not know whether the cloud got it." That is what the journal holds. A purchase that was
interrupted is asked for again with the SAME ClientToken, so that the cloud answers with what it has
already sold. An entry ends when its resource is deleted, so that the next purchase gets a new token.
"""

import json
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from raynest_pipeline.errors import RefusedError
from raynest_pipeline.files import private_dir, read_json, write_atomic


@dataclass(frozen=True)
class Intent:
    """One purchase: its token, and the id of what was bought once that is known."""

    token: str
    """ClientToken: at most 64 ASCII characters."""
    remote_id: str = ""
    region: str = ""
    account: str = ""
    """Id of the account that pays: the same token means nothing to another one."""
    secret: str = field(default="", repr=False)
    """A parameter that was drawn for this purchase (a password). Forgotten once the id is known."""
    order: Mapping[str, Any] = field(default_factory=dict)
    """What else was asked for, without the secret: the same token needs the same arguments."""

    def refuse_elsewhere(self, *, region: str, account: str = "") -> None:
        """Raise when this purchase was made somewhere else than where we look now.

        Args:
            region: Where we look.
            account: Whose resources we look at; "" when nobody has asked.

        Raises:
            RefusedError: Names where the older one is.
        """
        moved = [
            f"{what} {then}, and now it is {now}"
            for what, then, now in (("region", self.region, region), ("account", self.account, account))
            if then and now and then != now
        ]
        if moved:
            raise RefusedError(
                f"This chain was made elsewhere: {'; '.join(moved)}.",
                why=f"{self.remote_id or 'A purchase'} is on record there and may cost money.",
                fix="Set alibaba.region_id and the credentials back and take it down first "
                "(`raynest down`), or give the new chain another `name`.",
            )


_TEXTS = ("token", "remote_id", "region", "account", "secret")


class Journal:
    """The intentions of one chain, in one private file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, key: str) -> Intent | None:
        """The open intention under `key`."""
        entry = read_json(self._path).get(key)
        if not isinstance(entry, dict) or not isinstance(entry.get("token"), str):
            return None
        order = entry.get("order")
        texts = {name: str(entry.get(name, "")) for name in _TEXTS}
        return Intent(**texts, order=order if isinstance(order, dict) else {})

    def begin(
        self,
        key: str,
        *,
        region: str = "",
        account: str = "",
        secret: str = "",
        order: Mapping[str, Any] | None = None,
    ) -> Intent:
        """The open intention under `key`, or a new one with a fresh token, on disk before this returns."""
        if (intent := self.read(key)) is not None:
            return intent
        intent = Intent(
            f"raynest-{uuid.uuid4()}", region=region, account=account, secret=secret, order=dict(order or {})
        )
        self._write(key, intent)
        return intent

    def amend(self, key: str, order: Mapping[str, Any]) -> Intent:
        """Put on record what the open intention asks for from now on; its token and secret stay."""
        intent = replace(self.begin(key), order=dict(order))
        self._write(key, intent)
        return intent

    def record(self, key: str, remote_id: str) -> None:
        """Put the bought resource's id on record. What only a repetition needs, the secret first, goes."""
        self._write(key, replace(self.begin(key), remote_id=remote_id, secret="", order={}))

    def end(self, key: str) -> None:
        """Forget: the resource is gone, or is known to the cloud under our tag."""
        entries = read_json(self._path)
        if entries.pop(key, None) is not None:
            write_atomic(self._path, json.dumps(entries, indent=2))

    def _write(self, key: str, intent: Intent) -> None:
        private_dir(self._path.parent)
        entries = read_json(self._path)
        entries[key] = asdict(intent)
        write_atomic(self._path, json.dumps(entries, indent=2))
