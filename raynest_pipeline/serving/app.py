"""The Serve application: `import_path: raynest_pipeline.serving.app:build` in serveConfigV2.

Two deployments: `Imagine`, a FastAPI ingress that validates and answers, and `Painter`, the model. The
ingress holds no model, so it stays quick while the pipeline works.
"""

from __future__ import annotations

import os
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
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
from raynest_pipeline.serving.options import ServingOptions, resolve_options
from raynest_pipeline.serving.painter import painter_deployment


class HandleBackend:
    """Reaches Painter through its Serve handle and translates Ray's errors into the contract's."""

    def __init__(self, painter: DeploymentHandle) -> None:
        self._painter = painter

    async def paint(self, request: ImageRequest) -> Painting:
        """Paint one image. Raises PainterBusy, PainterUnavailable or PaintingFailed."""
        outcome: Painting | PainterBusy | PaintingFailed = await self._call("paint", request)
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
        except RayActorError as error:
            raise PainterUnavailable(f"the model replica died: {type(error).__name__}") from error
        except RayTaskError as error:
            raise PaintingFailed(str(error.cause)) from error
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
        return create_api(self._backend, self._options)


def build(args: dict[str, Any]) -> serve.Application:
    """The application for these serveConfigV2 `args` (see ServingOptions).

    Raises ValueError naming a wrong key.
    """
    options = resolve_options(args, os.environ)
    ingress = serve.deployment(
        Imagine,
        name="Imagine",
        num_replicas=1,
        # Room to spare: it is the Painter's own bound that answers 503, with a Retry-After.
        max_ongoing_requests=2 * options.replica_capacity * options.replicas + 16,
        ray_actor_options={"num_cpus": 0.1},
    )
    application: serve.Application = ingress.bind(painter_deployment(options).bind(options), options)
    return application


entrypoint = build
"""The stock sample's name for the same thing."""
