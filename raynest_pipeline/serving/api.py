"""The HTTP face, free of Ray: its routes. A Serve ingress or a test gives it a backend."""

# No `from __future__ import annotations`: FastAPI reads the routes' annotations, and they use local names.
from typing import Annotated

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response

from raynest_pipeline.serving.contract import PainterBackend
from raynest_pipeline.serving.described import HEALTH, IMAGINE, MANY, many_request
from raynest_pipeline.serving.front import FaceMeter, Front, NoMeter, answer, refuse
from raynest_pipeline.serving.many import BadBody, ManyImages, most_bytes, read_items
from raynest_pipeline.serving.options import ServingOptions
from raynest_pipeline.serving.parameters import item_model, parameters_model, problems
from raynest_pipeline.serving.timed import Timed


def create_api(backend: PainterBackend, options: ServingOptions, meter: FaceMeter | None = None) -> FastAPI:
    """The FastAPI application over `backend`. Limits in `options` appear in its OpenAPI description."""
    api = FastAPI(
        title="raynest image service", version="1", description="Images from prompts, on Ray Serve."
    )
    meter = meter or NoMeter()
    front = Front(backend, options.deadline_s, meter, options.most_in_work)
    api.add_middleware(Timed, meter=meter)
    parameters, item = parameters_model(options), item_model(options)
    most_images = options.images_per_request
    longest_body = most_bytes(most_images, options.max_prompt_chars)

    @api.get("/imagine", response_class=Response, responses=IMAGINE)
    async def imagine(
        request: Request,
        asked: Annotated[parameters, Query()],  # type: ignore[valid-type]  # with this application's limits
    ) -> Response:
        """Paint one image. Only `prompt` is required; what is left out takes the model's own default, the
        seed a random one.
        """
        return await answer(front, asked.request(request.headers.get("accept", "")))  # type: ignore[attr-defined]

    @api.post(
        "/v1/images",
        response_class=Response,
        responses=MANY,
        openapi_extra=many_request(item, most_images),
    )
    async def images(request: Request) -> Response:
        """Paint many images. Each is sent as a part of the answer as soon as it is ready; an item that is
        wrong, refused or fails does not spoil the others.
        """
        try:
            return ManyImages(front, await read_items(request, item, most_images, longest_body))
        except BadBody as error:
            return refuse(422, error.detail)

    @api.get("/health", responses=HEALTH)
    async def health() -> JSONResponse:
        """The model, its device and how busy it is.

        503 while the first replica loads, and when none can be reached or its device has failed.
        """
        status, body = await front.health()
        return JSONResponse(body, status_code=status)

    @api.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        """422 with field and reason. Only /imagine has parameters, so it is an image that was asked for."""
        meter.image("invalid")
        return refuse(422, problems(error.errors()))

    return api
