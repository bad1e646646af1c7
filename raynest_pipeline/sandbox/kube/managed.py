"""metadata.managedFields: who owns which field, and how a write moves the ownership."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from raynest_pipeline.sandbox.kube import fieldset
from raynest_pipeline.sandbox.kube.fieldset import EMPTY, FieldSet

Scope = Callable[[FieldSet], FieldSet]


@dataclass(frozen=True, order=True)
class Owner:
    """A manager's entry: one per name, operation (Apply | Update) and subresource ("" | status)."""

    operation: str
    manager: str
    subresource: str = ""


@dataclass
class Claim:
    """What an owner owns, under which apiVersion, since when (RFC 3339)."""

    paths: FieldSet
    version: str
    time: str


@dataclass
class Ownership:
    """All the claims on one object."""

    claims: dict[Owner, Claim] = field(default_factory=dict)

    @classmethod
    def of(cls, obj: dict[str, Any]) -> Ownership:
        """Read an object's metadata.managedFields."""
        claims = {}
        for entry in obj.get("metadata", {}).get("managedFields") or ():
            owner = Owner(entry["operation"], entry["manager"], entry.get("subresource", ""))
            claims[owner] = Claim(
                fieldset.decode(entry.get("fieldsV1", {})), entry["apiVersion"], entry.get("time", "")
            )
        return cls(claims)

    def encoded(self) -> list[dict[str, Any]]:
        """The managedFields list, in the server's order: operation, time, manager, subresource."""
        ordered = sorted(
            self.claims.items(),
            key=lambda pair: (pair[0].operation, pair[1].time, pair[0].manager, pair[0].subresource),
        )
        found = []
        for owner, claim in ordered:
            entry = {
                "apiVersion": claim.version,
                "fieldsType": "FieldsV1",
                "fieldsV1": fieldset.encode(claim.paths),
                "manager": owner.manager,
                "operation": owner.operation,
                "time": claim.time,
            }
            found.append(entry | ({"subresource": owner.subresource} if owner.subresource else {}))
        return found

    def paths(self, owner: Owner) -> FieldSet:
        """What an owner owns; nothing if it owns nothing."""
        claim = self.claims.get(owner)
        return claim.paths if claim else EMPTY

    def everything(self) -> FieldSet:
        """What anybody owns."""
        return EMPTY.union(*(claim.paths for claim in self.claims.values()))

    def conflicts(self, owner: Owner, written: FieldSet) -> dict[Owner, FieldSet]:
        """The other owners of the paths that a write changes."""
        found = {}
        for other, claim in self.claims.items():
            overlap = claim.paths & written
            if other != owner and overlap:
                found[other] = overlap
        return found

    def settle(self, owner: Owner, mine: FieldSet, *, lost: FieldSet, version: str, now: str | None) -> None:
        """Give `owner` the paths `mine`; everybody else loses `lost`. A claim on nothing goes.

        The writer's own claim gets the time `now` (None: keeps its time); the others keep theirs."""
        for other in [other for other in self.claims if other != owner]:
            claim = self.claims[other]
            self.claims[other] = replace(claim, paths=claim.paths - lost)
            if not self.claims[other].paths:
                del self.claims[other]
        before = self.claims.pop(owner, None)
        if mine:
            time = now or (before.time if before else "")
            self.claims[owner] = Claim(mine, version, time)
