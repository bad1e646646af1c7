"""Answers requests: who is asking, for what, may they, and does a fault get in the way.

RPC products are told apart by the headers x-acs-action and x-acs-version, Container Service by method and
path.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote

from raynest_pipeline.sandbox.cloud import computenest, computenest_service, cs, ecs, identity, ros, vpc
from raynest_pipeline.sandbox.cloud.context import Call, Cloud, Handler, new_uuid
from raynest_pipeline.sandbox.cloud.errors import CloudError
from raynest_pipeline.sandbox.cloud.wire import Params
from raynest_pipeline.sandbox.signature import SignatureError, SignedRequest, Verifier

_NEST = computenest.HANDLERS | computenest_service.HANDLERS

#: API version -> the product's name in RAM actions, and its actions.
RPC: dict[str, tuple[str, Mapping[str, Handler]]] = {
    "2021-06-01": ("computenest", _NEST | computenest.USER_HANDLERS | computenest_service.USER_HANDLERS),
    "2021-05-21": ("computenestsupplier", _NEST),
    "2015-04-01": ("sts", identity.STS_HANDLERS),
    "2015-05-01": ("ram", identity.RAM_HANDLERS),
    "2016-04-28": ("vpc", vpc.HANDLERS),
    "2014-05-26": ("ecs", ecs.HANDLERS),
    "2019-09-10": ("ros", ros.HANDLERS),
}

_ROA_VERSION = "2015-12-15"
_UNAVAILABLE_PAGE = b"<html><head><title>503 Service Temporarily Unavailable</title></head></html>"
_CALLS_KEPT = 10_000


@dataclass(frozen=True)
class Answer:
    """What goes back. `drop` means: nothing does, the connection is cut after the call was carried out."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    drop: bool = False


@dataclass
class Target:
    """What a request asks for: product and action, the handler, and the variables of the path."""

    product: str
    action: str
    handler: Handler
    path: dict[str, str] = field(default_factory=dict)

    @property
    def ram_action(self) -> str:
        """The action as RAM policies write it."""
        return f"{self.product}:{self.action}"


class Gateway:
    """Answers every cloud request, and keeps a log of the calls (no parameters: they hold secrets)."""

    def __init__(self, cloud: Cloud, verifier: Verifier) -> None:
        self._cloud = cloud
        self._verifier = verifier
        self.calls: deque[dict[str, Any]] = deque(maxlen=_CALLS_KEPT)

    def answer(self, request: SignedRequest) -> Answer:
        """Carry out one request. Refusals are answers too; nothing is raised."""
        # The SDK sends x-acs-action with Container Service calls too: the version tells the styles apart.
        is_rpc = request.headers.get("x-acs-version") != _ROA_VERSION
        entry: dict[str, Any] = {
            "time": self._cloud.clock(),
            "product": "",
            "action": request.headers.get("x-acs-action", ""),
            "status": 200,
            "code": "",
            "fault": "",
        }
        self.calls.append(entry)
        try:
            target = find_target(request)
            entry["product"], entry["action"] = target.product, target.action
            self._verifier.verify(request)
            broken = self._broken(target, entry)
            if broken is not None:
                return broken
            self._cloud.require(target.ram_action)
            result = target.handler(_call(self._cloud, target, request))
        except SignatureError as error:
            return _refuse(CloudError(error.status, error.code, error.message), is_rpc, entry)
        except CloudError as error:
            return _refuse(error, is_rpc, entry)
        self._cloud.save()
        if is_rpc:
            result = {"RequestId": new_uuid(), **result}
        lost = self._fault("lost_response", target)
        if lost is not None:
            entry["fault"] = "lost_response"
        body = json.dumps(result, ensure_ascii=False).encode()
        return Answer(200, body, drop=lost is not None)

    def _broken(self, target: Target, entry: dict[str, Any]) -> Answer | None:
        if self._fault("unavailable", target) is not None:
            entry.update(status=503, fault="unavailable")
            return Answer(503, _UNAVAILABLE_PAGE, content_type="text/html")
        throttling = self._fault("throttling", target)
        if throttling is None:
            return None
        entry["fault"] = "throttling"
        is_rpc = target.product != "cs"
        message = f"Request was denied due to user flow control: {target.action}."
        refusal = _refuse(CloudError(400 if is_rpc else 429, "Throttling.User", message), is_rpc, entry)
        wait = throttling["retry_after_ms"]
        headers = {} if wait is None else {"x-acs-retry-after": str(wait)}
        return Answer(refusal.status, refusal.body, headers=headers)

    def _fault(self, name: str, target: Target) -> dict[str, Any] | None:
        fault = self._cloud.faults.active(name)
        if fault is None or fault["action"] not in (None, "*", target.action, target.ram_action):
            return None
        return self._cloud.faults.consume(name)


def find_target(request: SignedRequest) -> Target:
    """The product and action of a request. Raises CloudError when there is none."""
    version = request.headers.get("x-acs-version", "")
    action = request.headers.get("x-acs-action", "")
    if version in RPC:
        product, handlers = RPC[version]
        if action in handlers:
            return Target(product, action, handlers[action])
    elif version == _ROA_VERSION:
        found = _route(request)
        if found is not None:
            return found
    else:
        raise CloudError(404, "InvalidVersion", f"Specified parameter Version is not valid: {version!r}.")
    message = f"Specified api is not found, please check your url and method: {action or request.method}."
    raise CloudError(404, "InvalidAction.NotFound", message)


def _route(request: SignedRequest) -> Target | None:
    path = request.target.partition("?")[0]
    for method, pattern, action, handler in cs.ROUTES:
        expression = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", pattern)
        match = re.fullmatch(expression, path)
        if match and method == request.method:
            variables = {name: unquote(value) for name, value in match.groupdict().items()}
            return Target("cs", action, handler, variables)
    return None


def _call(cloud: Cloud, target: Target, request: SignedRequest) -> Call:
    query = request.target.partition("?")[2]
    values = dict(parse_qsl(query, keep_blank_values=True))
    body: dict[str, Any] = {}
    if request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        values.update(parse_qsl(request.body.decode(), keep_blank_values=True))
    elif target.product == "cs" and request.body:
        try:
            body = json.loads(request.body)
        except ValueError as error:
            raise CloudError(400, "InvalidJSON", "The body is not valid JSON.") from error
        if not isinstance(body, dict):
            raise CloudError(400, "InvalidJSON", "The body is not a JSON object.")
    return Call(cloud, target.product, target.action, Params(values), target.path, body)


def _refuse(error: CloudError, is_rpc: bool, entry: dict[str, Any]) -> Answer:
    entry.update(status=error.status, code=error.code)
    request_id = new_uuid()
    if is_rpc:
        recommend = f"https://api.aliyun.com/troubleshoot?q={error.code}"
        body = {
            "RequestId": request_id,
            "HostId": "sandbox.aliyuncs.com",
            "Code": error.code,
            "Message": error.message,
            "Recommend": recommend,
            **error.extra,
        }
    else:
        extra = {key[0].lower() + key[1:]: value for key, value in error.extra.items()}
        body = {"code": error.code, "message": error.message, "requestId": request_id, "status": error.status}
        body |= extra
    return Answer(error.status, json.dumps(body, ensure_ascii=False).encode())
