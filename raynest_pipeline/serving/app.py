"""The Serve application: `import_path: raynest_pipeline.serving.app:build` in serveConfigV2.

Two deployments: `Imagine`, a FastAPI ingress that validates and answers, and `Painter`, the model. The
ingress holds no model, so it stays quick while the pipeline works.
"""

from __future__ import annotations

import os
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle

from raynest_pipeline.serving.api import create_api
from raynest_pipeline.serving.contract import (
    ImageRequest,
    PainterBusy,
    PainterFacts,
    PainterUnavailable,
    Painting,
    PaintingFailed,
)
from raynest_pipeline.serving.meters import RayFaceMeter
from raynest_pipeline.serving.options import ServingOptions, resolve_options
from raynest_pipeline.serving.painter import Answer, painter_deployment


class HandleBackend:
    """Reaches Painter through its Serve handle and translates Ray's errors into the contract's."""

    def __init__(self, painter: DeploymentHandle) -> None:
        self._painter = painter

    async def paint(self, request: ImageRequest) -> Painting:
        """Paint one image. Raises PainterBusy, PainterUnavailable, PaintingFailed or TimeoutError."""
        outcome: Answer = await self._call("paint", request)
        if isinstance(outcome, Painting):
            return outcome
        raise outcome

    async def facts(self) -> PainterFacts:
        """The replica's facts. Raises PainterBusy or PainterUnavailable."""
        facts: PainterFacts = await self._call("facts")
        return facts

    async def _call(self, method: str, *args: Any) -> Any:
        response = getattr(self._painter, method).remote(*args)
        try:
            return await response
        except BackPressureError as error:
            raise PainterBusy("the queue is full") from error
        except DeploymentUnavailableError as error:
            raise PainterUnavailable(f"the model deployment failed: {error}") from error
        except RayTaskError as error:
            raise PaintingFailed(f"{type(error.cause).__name__}: {error.cause}") from error
        except (RayError, RayServeException) as error:
            # The replica died, or its node with the image that it had painted.
            raise PainterUnavailable(f"the model replica died: {type(error).__name__}") from error
        finally:
            # A caller that went away, or a deadline: the request leaves the queue before it costs device
            # time.
            response.cancel()


@serve.ingress()
class Imagine:
    """The ingress replica: FastAPI over a handle to Painter."""

    def __init__(self, painter: DeploymentHandle, options: ServingOptions) -> None:
        self._backend = HandleBackend(painter)
        self._options = options

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Serve calls it once per replica; the OpenAPI description carries this application's own limits."""
        return create_api(self._backend, self._options, RayFaceMeter())


def build(args: dict[str, Any]) -> serve.Application:
    """The application for these serveConfigV2 `args` (see ServingOptions).

    Raises ValueError naming a wrong key.
    """
    options = resolve_options(args, os.environ)
    ingress = serve.deployment(
        Imagine,
        name="Imagine",
        # One: it only passes bytes on, and so /health counts everything.
        num_replicas=1,
        # More than it lets wait: what is beyond that waits in Serve's proxy, without bound and deadline, and
        # is to be answered 503 with a Retry-After instead.
        max_ongoing_requests=options.most_in_work + 16,
        ray_actor_options={"num_cpus": 0.1},
    )
    application: serve.Application = ingress.bind(painter_deployment(options).bind(options), options)
    return application


entrypoint = build
"""The stock sample's name for the same thing."""
