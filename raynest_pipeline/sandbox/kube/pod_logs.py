"""GET …/pods/NAME/log: a container's output as plain text."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from raynest_pipeline.sandbox.kube import errors
from raynest_pipeline.sandbox.kube.access import Target
from raynest_pipeline.sandbox.kube.backends import Backends
from raynest_pipeline.sandbox.kube.responses import HEADERS
from raynest_pipeline.sandbox.kube.store import Store

_TRUE = ("1", "true")


def container_of(pod: dict[str, Any], asked: str) -> str:
    """The container whose log is meant. 400 when there's a choice to make, or no such container."""
    name = pod["metadata"]["name"]
    spec = pod["spec"]
    main = [one["name"] for one in spec["containers"]]
    initial = [one["name"] for one in spec.get("initContainers", ())]
    if asked:
        if asked not in main + initial:
            raise errors.bad_request(f"container {asked} is not valid for pod {name}")
        return asked
    if len(main) == 1 and not initial:
        return str(main[0])
    message = f"a container name must be specified for pod {name}, choose one of: [{' '.join(main)}]"
    if initial:
        message += f" or one of the init containers: [{' '.join(initial)}]"
    raise errors.bad_request(message)


async def answer(
    store: Store, backends: Backends, request: web.Request, target: Target
) -> web.StreamResponse:
    """Stream the log; with `follow=true` until the container ends or the client goes."""
    pod = store.get("pods", target.namespace, target.name)
    if pod is None:
        raise errors.not_found("pods", "", target.name)
    container = container_of(pod, request.query.get("container", ""))
    tail = request.query.get("tailLines")
    if tail is not None and not tail.isdigit():
        raise errors.bad_request(f"invalid tailLines: {tail}")
    if request.query.get("previous") in _TRUE:
        why = f'previous terminated container "{container}" in pod "{target.name}" not found'
        raise errors.bad_request(why)
    pieces = backends.logs(
        target.namespace,
        target.name,
        container,
        tail=int(tail) if tail is not None else None,
        follow=request.query.get("follow") in _TRUE,
    )
    # The first piece before the headers: an error of the kubelet is an answer, not a broken stream.
    first = await anext(pieces, b"")
    response = web.StreamResponse(headers=HEADERS)
    response.content_type = "text/plain"
    await response.prepare(request)
    if first:
        await response.write(first)
    async for piece in pieces:
        await response.write(piece)
    await response.write_eof()
    return response
