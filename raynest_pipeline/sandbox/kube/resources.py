"""The verbs on resources: get, list, create, update, patch, delete, and the reviews."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from raynest_pipeline.sandbox.kube import errors, patches, schema, tables
from raynest_pipeline.sandbox.kube.access import Target
from raynest_pipeline.sandbox.kube.authority import Identity
from raynest_pipeline.sandbox.kube.kinds import Kind
from raynest_pipeline.sandbox.kube.responses import PROTOBUF, answer, body_of
from raynest_pipeline.sandbox.kube.store import Store

Object = dict[str, Any]

APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
JSON = "application/json-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"


class Resources:
    """Answers requests for one cluster's objects."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def answer(self, request: web.Request, kind: Kind, target: Target, who: Identity) -> web.Response:
        """Dispatch a request that names a resource (proxies, logs and watches go elsewhere)."""
        if kind.plural == "selfsubjectaccessreviews":
            return await self._review(request, who)
        if request.method == "GET":
            return self._get(request, kind, target) if target.name else self._list(request, kind, target)
        if request.method == "POST" and not target.name:
            return await self._create(request, kind, target)
        if request.method == "PUT" and target.name:
            return await self._put(request, kind, target)
        if request.method == "PATCH" and target.name:
            return await self._patch(request, kind, target)
        if request.method == "DELETE" and not target.subresource:
            return await self._delete(request, kind, target)
        message = "the server does not allow this method on the requested resource"
        raise errors.ApiError(405, message, reason="MethodNotAllowed")

    # Reading

    def _found(self, kind: Kind, target: Target) -> Object:
        obj = self._store.get(kind.plural, target.namespace, target.name)
        if obj is None:
            raise kind.not_found(target.name)
        return obj

    def _get(self, request: web.Request, kind: Kind, target: Target) -> web.Response:
        obj = self._found(kind, target)
        if _wants_table(request):
            version = obj["metadata"]["resourceVersion"]
            return answer(tables.table(kind, [obj], version, include=_include(request)))
        return answer(obj)

    def _list(self, request: web.Request, kind: Kind, target: Target) -> web.Response:
        objects, more = self._selected(request, kind, target)
        revision = str(self._store.history.revision)
        if _wants_table(request):
            whole = tables.table(kind, objects, revision, include=_include(request))
            whole["metadata"] |= more
            return answer(whole)
        if not kind.custom:
            # The items of a built-in list don't repeat its type, as the clients' own types show.
            objects = [
                {key: value for key, value in obj.items() if key not in ("apiVersion", "kind")}
                for obj in objects
            ]
        else:
            more.setdefault("continue", "")
        head = {"kind": f"{kind.kind}List", "apiVersion": kind.api_version}
        return answer(head | {"metadata": {"resourceVersion": revision, **more}, "items": objects})

    def _selected(self, request: web.Request, kind: Kind, target: Target) -> tuple[list[Object], Object]:
        """The objects of a list request, and what ListMeta says about the rest of them."""
        query = request.query
        objects = self._store.list(
            kind.plural,
            target.namespace or None,
            labels=query.get("labelSelector", ""),
            fields=query.get("fieldSelector", ""),
        )
        after = _continued(query.get("continue", ""))
        objects = [obj for obj in objects if _position(obj) > after]
        limit = int(query.get("limit") or 0)
        if not limit or len(objects) <= limit:
            return objects, {}
        token = base64.urlsafe_b64encode(json.dumps(_position(objects[limit - 1])).encode()).decode()
        return objects[:limit], {"continue": token, "remainingItemCount": len(objects) - limit}

    # Writing

    async def _create(self, request: web.Request, kind: Kind, target: Target) -> web.Response:
        obj = _checked_body(await body_of(request), kind, target)
        warnings = _unknown_fields(request, kind, obj)
        made = self._store.create(kind.plural, obj, manager=_manager(request), dry_run=_dry_run(request))
        return answer(made, 201, warnings)

    async def _put(self, request: web.Request, kind: Kind, target: Target) -> web.Response:
        obj = _checked_body(await body_of(request), kind, target)
        warnings = _unknown_fields(request, kind, obj)
        return answer(self._replace(request, kind, target, obj), 200, warnings)

    def _replace(self, request: web.Request, kind: Kind, target: Target, obj: Object) -> Object:
        manager, dry_run = _manager(request), _dry_run(request)
        if target.subresource == "status":
            self._found(kind, target)
            return self._store.update_status(
                kind.plural,
                target.namespace,
                target.name,
                obj.get("status", {}),
                manager=manager,
                dry_run=dry_run,
                version=obj.get("metadata", {}).get("resourceVersion"),
            )
        return self._store.update(kind.plural, obj, manager=manager, dry_run=dry_run)

    async def _patch(self, request: web.Request, kind: Kind, target: Target) -> web.Response:
        how = request.content_type
        if how == APPLY:
            return await self._apply(request, kind, target)
        if request.query.get("force"):
            raise _invalid_option("force", "Forbidden: may not be specified for non-apply patch")
        if how not in (MERGE, JSON, STRATEGIC) or (how == STRATEGIC and kind.custom):
            accepted = [JSON, MERGE, APPLY] if kind.custom else [JSON, MERGE, STRATEGIC, APPLY]
            message = "the body of the request was in an unknown format - accepted media types include: "
            raise errors.ApiError(415, message + ", ".join(accepted), reason="UnsupportedMediaType")
        patch = await body_of(request)
        live = self._found(kind, target)
        if how == JSON:
            changed = patches.json_patch(live, patch)
        elif how == MERGE:
            changed = patches.merge(live, patch)
        else:
            changed = patches.strategic(live, patch, kind.schema)
        changed = _checked_body(changed, kind, target)
        warnings = _unknown_fields(request, kind, changed, is_patch=True)
        return answer(self._replace(request, kind, target, changed), 200, warnings)

    async def _apply(self, request: web.Request, kind: Kind, target: Target) -> web.Response:
        if not request.query.get("fieldManager"):
            raise _invalid_option("fieldManager", "Required value: is required for apply patch")
        obj = await body_of_yaml(request)
        metadata = obj.get("metadata") or {}
        name = metadata.get("name", target.name)
        if name != target.name:
            message = f"the name of the object ({name}) does not match the name on the URL ({target.name})"
            raise errors.bad_request(message)
        sent = f"{metadata.get('namespace', '')}/{name}"
        obj = _checked_body(obj, kind, target)
        applied, created = self._store.apply(
            kind.plural,
            obj,
            manager=_manager(request),
            force=request.query.get("force", "") in ("1", "true"),
            dry_run=_dry_run(request),
            subresource=target.subresource,
            sent_as=sent,
        )
        return answer(applied, 201 if created else 200)

    async def _delete(self, request: web.Request, kind: Kind, target: Target) -> web.Response:
        options = await body_of(request) or {}
        policy = request.query.get("propagationPolicy") or options.get("propagationPolicy") or "Background"
        dry_run = _dry_run(request) or options.get("dryRun") == ["All"]
        if not target.name:
            objects, _ = self._selected(request, kind, target)
            for obj in objects:
                name, namespace = obj["metadata"]["name"], obj["metadata"].get("namespace")
                self._store.delete(kind.plural, namespace, name, propagation=policy, dry_run=dry_run)
            listed: Object = {"kind": f"{kind.kind}List", "apiVersion": kind.api_version}
            revision = str(self._store.history.revision)
            return answer(listed | {"metadata": {"resourceVersion": revision}, "items": objects})
        self._check_preconditions(kind, target, options.get("preconditions") or {})
        left = self._store.delete(
            kind.plural, target.namespace, target.name, propagation=policy, dry_run=dry_run
        )
        if kind.graceful or left["metadata"].get("deletionTimestamp"):
            return answer(left)
        about: Object = errors.details(kind.group, kind.plural, target.name) | {
            "uid": left["metadata"]["uid"]
        }
        head: Object = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
        return answer(head | {"details": about})

    def _check_preconditions(self, kind: Kind, target: Target, wanted: Mapping[str, str]) -> None:
        metadata = self._found(kind, target)["metadata"]
        for key, label in (("uid", "UID"), ("resourceVersion", "ResourceVersion")):
            if wanted.get(key, metadata[key]) != metadata[key]:
                why = f"Precondition failed: {label} in precondition: {wanted[key]}, "
                why += f"{label} in object meta: {metadata[key]}"
                raise errors.conflict(kind.plural, kind.group, target.name, why)

    async def _review(self, request: web.Request, who: Identity) -> web.Response:
        """SelfSubjectAccessReview: administrators may do everything, nobody else anything."""
        if request.content_type == PROTOBUF:
            # kubectl asks in protobuf and takes JSON; the answer doesn't depend on the question.
            review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": {}}
            return answer(review | {"metadata": {}, "status": {"allowed": who.is_admin}}, 201)
        review = await body_of(request) or {}
        if not isinstance(review, dict) or not review.get("spec"):
            cause = {
                "reason": "FieldValueInvalid",
                "message": "Invalid value: null: at least one of resourceAttributes or nonResourceAttributes "
                "must be specified",
                "field": "spec.resourceAttributes",
            }
            raise errors.invalid("SelfSubjectAccessReview", "authorization.k8s.io", "", [cause])
        return answer(review | {"status": {"allowed": who.is_admin}}, 201)


async def body_of_yaml(request: web.Request) -> Object:
    """An apply patch's body; 400 unless it is an object."""
    body = await body_of(request)
    if not isinstance(body, dict):
        raise errors.bad_request("error decoding YAML: the apply patch is not an object")
    return body


def _wants_table(request: web.Request) -> bool:
    return "as=Table" in request.headers.get("Accept", "")


def _include(request: web.Request) -> str:
    return request.query.get("includeObject", "Metadata")


def _position(obj: Object) -> list[str]:
    metadata = obj["metadata"]
    return [metadata.get("namespace", ""), metadata["name"]]


def _continued(token: str) -> list[str]:
    if not token:
        return ["", ""]
    try:
        return [str(part) for part in json.loads(base64.urlsafe_b64decode(token))]
    except ValueError as error:
        raise errors.bad_request(f"continue key is not valid: {error}") from error


def _manager(request: web.Request) -> str:
    """The field manager: the parameter, or the first part of the User-Agent."""
    named = request.query.get("fieldManager")
    return named or request.headers.get("User-Agent", "unknown").partition("/")[0]


def _dry_run(request: web.Request) -> bool:
    return request.query.get("dryRun") == "All"


def _invalid_option(field: str, message: str) -> errors.ApiError:
    cause = {"reason": "FieldValueRequired" if "Required" in message else "FieldValueForbidden"}
    cause |= {"message": message, "field": field}
    return errors.invalid("PatchOptions", "meta.k8s.io", "", [cause])


def _checked_body(body: Any, kind: Kind, target: Target) -> Object:
    """The object of a write, checked against the URL. 400 when they don't agree."""
    if not isinstance(body, dict):
        raise errors.bad_request(f"the object provided is unrecognized: expected {kind.kind}")
    given = (body.get("apiVersion", kind.api_version), body.get("kind", kind.kind))
    if given != (kind.api_version, kind.kind):
        message = f"the API version in the data ({given[0]}) does not match the expected API version "
        message += f"({kind.api_version})"
        if given[0] == kind.api_version:
            message = f"the object provided is unrecognized: {given[1]} is not {kind.kind}"
        raise errors.bad_request(message)
    metadata = body.setdefault("metadata", {})
    if target.name:
        name = metadata.setdefault("name", target.name)
        if name != target.name:
            message = f"the name of the object ({name}) does not match the name on the URL ({target.name})"
            raise errors.bad_request(message)
    if kind.namespaced:
        namespace = metadata.setdefault("namespace", target.namespace)
        if namespace != target.namespace:
            message = "the namespace of the provided object does not match the namespace sent on the request"
            raise errors.bad_request(message)
    return body


def _unknown_fields(request: web.Request, kind: Kind, obj: Object, *, is_patch: bool = False) -> list[str]:
    """Warnings about undeclared fields (fieldValidation=Warn, the default); 400 (a patch: 422) if Strict."""
    how = request.query.get("fieldValidation") or "Warn"
    if how == "Ignore":
        return []
    known = {key: value for key, value in obj.items() if key != "status"}
    unknown = [f'unknown field "{path}"' for path in schema.undeclared(known, kind.schema)]
    if unknown and how == "Strict" and is_patch:
        shown = json.dumps(json.dumps(obj, separators=(",", ":")))
        message = f"Invalid value: {shown}: strict decoding error: {', '.join(unknown)}"
        cause = {"reason": "FieldValueInvalid", "message": message, "field": "patch"}
        raise errors.invalid("", "", "", [cause])
    if unknown and how == "Strict":
        message = f'{kind.kind} in version "{kind.version}" cannot be handled as a {kind.kind}: '
        raise errors.bad_request(f"{message}strict decoding error: {', '.join(unknown)}")
    return unknown
