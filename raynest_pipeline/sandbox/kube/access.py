"""Who is asking, for what, and may they: the request's path, authentication, authorization."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import unquote

from aiohttp import web

from raynest_pipeline.sandbox.kube import errors
from raynest_pipeline.sandbox.kube.authority import ANONYMOUS, Authority, Identity

_PUBLIC = ("/healthz", "/livez", "/readyz", "/version")
_DISCOVERY = ("/api", "/apis", "/openapi", *_PUBLIC)

_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch"}


@dataclass(frozen=True)
class Target:
    """What a path below /api or /apis names. Empty strings where the path stops short."""

    group: str
    version: str
    namespace: str = ""
    resource: str = ""
    name: str = ""
    subresource: str = ""
    rest: str = ""

    @property
    def ends(self) -> bool:
        """Does the path end with what is named here (only a proxy's goes on)?"""
        return self.rest in ("", "/")


def target_of(path: str) -> Target | None:
    """The resource that a path (encoded, without its query) names; None for discovery and other paths.

    `rest` is what follows `/proxy`, with its leading slash, encoded as it was sent."""
    raw = path.removeprefix("/").split("/")
    parts = [unquote(part) for part in raw]
    if parts[0] == "api" and len(parts) > 2 and parts[2]:
        group, version, start = "", parts[1], 2
    elif parts[0] == "apis" and len(parts) > 3 and parts[3]:
        group, version, start = parts[1], parts[2], 3
    else:
        return None
    namespace = ""
    if parts[start] == "namespaces" and len(parts) > start + 2 and parts[start + 2] not in ("", "status"):
        namespace, start = parts[start + 1], start + 2
    resource, name, subresource, *_ = [*parts[start:], "", "", ""]
    below = raw[start + 3 :]
    rest = "/" + "/".join(below) if below else ""
    return Target(group, version, namespace, resource, name, subresource, rest)


def verb_of(request: web.Request, target: Target) -> str:
    """The verb that authorization sees."""
    if request.method in _VERBS:
        return _VERBS[request.method]
    if request.method == "DELETE":
        return "delete" if target.name else "deletecollection"
    if target.name:
        return "get"
    return "watch" if is_watch(request) else "list"


def is_watch(request: web.Request) -> bool:
    """Does the request ask to watch?"""
    return request.query.get("watch", "") in ("1", "true", "True")


def authenticated(request: web.Request, authority: Authority) -> Identity:
    """The request's identity: client certificate or bearer token; 401 if one was given and none is good."""
    found: Identity | None = None
    given = False
    channel = request.transport.get_extra_info("ssl_object") if request.transport else None
    der = channel.getpeercert(binary_form=True) if channel else None
    if der:
        given = True
        found = authority.by_certificate(der)
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if found is None and scheme.lower() == "bearer" and token.strip():
        given = True
        found = authority.by_token(token.strip())
    if found is None and given:
        raise errors.unauthorized()
    return found or ANONYMOUS


def authorize(request: web.Request, identity: Identity, target: Target | None) -> None:
    """403 unless allowed: administrators everything, others discovery, the anonymous health and version."""
    if identity.is_admin:
        return
    if target is None:
        open_paths = _PUBLIC if identity == ANONYMOUS else _DISCOVERY
        if request.path.startswith(open_paths):
            return
        message = f'forbidden: User "{identity.user}" cannot get path "{request.path}"'
        raise errors.ApiError(403, message, reason="Forbidden")
    if target.resource == "selfsubjectaccessreviews" and identity != ANONYMOUS:
        return
    resource = f"{target.resource}/{target.subresource}" if target.subresource else target.resource
    where = f'in the namespace "{target.namespace}"' if target.namespace else "at the cluster scope"
    why = (
        f'User "{identity.user}" cannot {verb_of(request, target)} resource "{resource}" '
        f'in API group "{target.group}" {where}'
    )
    raise errors.forbidden(target.resource, target.group, target.name, why)
