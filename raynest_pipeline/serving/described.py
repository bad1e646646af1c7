"""What the OpenAPI document says beyond FastAPI's own: answers, their headers, a POST's body."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from raynest_pipeline.serving.contract import PainterFacts
from raynest_pipeline.serving.encode import MEDIA_TYPES
from raynest_pipeline.serving.parameters import ImageParameters

Schema = dict[str, Any]


def header(description: str, kind: str = "string", **limits: Any) -> Schema:
    """A header's description."""
    return {"description": description, "schema": {"type": kind, **limits}}


IMAGE_HEADERS: Schema = {
    "X-Raynest-Seed": header("The seed, also where it was drawn.", "integer"),
    "X-Raynest-Model": header("The model's name; beyond ASCII backslash-escaped."),
    "X-Raynest-Revision": header("The model's revision."),
    "X-Raynest-Steps": header("Denoising steps.", "integer"),
    "X-Raynest-Guidance": header("Guidance scale.", "number"),
    "X-Raynest-Size": header("Edge in pixels.", "integer"),
    "X-Raynest-Device": header("What painted it."),
    "X-Raynest-Seconds": header("Seconds of the pipeline call that made the whole batch.", "number"),
    "X-Raynest-Batch": header("Images in that batch.", "integer"),
    "X-Raynest-Worker": header("Serve's id of the model replica that painted it."),
    "X-Raynest-Scheduler": header("Class of the solver in diffusers."),
    "X-Raynest-Vae": header("Only there when another VAE stood in for the model's own."),
    "X-Raynest-Filtered": header("Only there when the model's safety checker blacked the image out."),
}
RETRY_AFTER: Schema = {"Retry-After": header("Whole seconds after which to ask again.", "integer", minimum=1)}

REASON: Schema = {
    "type": "object",
    "required": ["detail"],
    "properties": {"detail": {"type": "string", "description": "Why."}},
}
PROBLEMS: Schema = {
    "type": "object",
    "required": ["detail"],
    "properties": {
        "detail": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["loc", "msg", "type"],
                "properties": {
                    "loc": {"type": "array", "items": {"type": ["string", "integer"]}},
                    "msg": {"type": "string"},
                    "type": {"type": "string"},
                    "input": {"type": "string", "description": "The beginning of what was sent."},
                },
            },
        }
    },
}
BINARY: Schema = {"type": "string", "format": "binary"}


def failure(description: str, schema: Schema = REASON, headers: Schema | None = None) -> Schema:
    """An error answer's description."""
    described: Schema = {"description": description, "content": {"application/json": {"schema": schema}}}
    return {**described, "headers": headers} if headers else described


UNAVAILABLE = failure("The queue is full or no model replica is up.", headers=RETRY_AFTER)

IMAGINE: dict[int | str, Schema] = {
    200: {
        "description": "The image; the headers say how to make it again.",
        "content": {media: {"schema": BINARY} for media in MEDIA_TYPES.values()},
        "headers": IMAGE_HEADERS,
    },
    422: failure("A parameter is missing, unknown as a value, or outside its limits.", PROBLEMS),
    500: failure("The pipeline failed on a valid request."),
    503: UNAVAILABLE,
    504: failure("The deadline passed."),
}

PART_HEADERS: Schema = {
    "Content-Length": header("Bytes of the part.", "integer"),
    "X-Raynest-Index": header("Which item of the request, counted from 0.", "integer", minimum=0),
    "X-Raynest-Status": header(
        "How GET /imagine would have answered.", "integer", enum=[200, 422, 500, 503, 504]
    ),
}
PARTS = (
    "One part per item, in the order of completion: an image, or the error as JSON. Each part has "
    "Content-Type, Content-Length, X-Raynest-Index and X-Raynest-Status; Retry-After where the queue refused "
    "the item; and all X-Raynest headers of GET /imagine for an image. When the answer ends without the "
    "closing boundary, ask again for what has not come."
)
MANY: dict[int | str, Schema] = {
    200: {
        "description": PARTS,
        "content": {
            "multipart/mixed": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "image": BINARY,
                        "error": {"anyOf": [REASON, PROBLEMS]},
                    },
                },
                "encoding": {
                    "image": {
                        "contentType": ", ".join(MEDIA_TYPES.values()),
                        "headers": PART_HEADERS | IMAGE_HEADERS,
                    },
                    "error": {"contentType": "application/json", "headers": PART_HEADERS | RETRY_AFTER},
                },
            }
        },
    },
    422: failure("The body is not JSON, has no list of images, too many of them, or is too long.", PROBLEMS),
    503: failure(
        "The queue took none of the images, or no model replica is up. Refused items of a request that was "
        "taken in part are parts with this status.",
        headers=RETRY_AFTER,
    ),
}


def many_request(item: type[ImageParameters], most_images: int) -> Schema:
    """The body of POST /v1/images, for the operation's `openapi_extra`."""
    images: Schema = {
        "type": "array",
        "minItems": 1,
        "maxItems": most_images,
        "items": item.model_json_schema(),
        "description": "Each is validated for itself.",
    }
    body: Schema = {
        "type": "object",
        "required": ["images"],
        "properties": {"images": images},
        "additionalProperties": False,
    }
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": body}}}}


def health_body(statuses: list[str]) -> Schema:
    """The body of /health with one of these statuses."""
    facts = TypeAdapter(PainterFacts).json_schema()
    return {
        "type": "object",
        "required": ["status", "queue_depth", "images_served"],
        "properties": {
            "status": {"enum": statuses},
            "detail": {"type": "string", "description": "What failed, or is waited for."},
            "queue_depth": {
                "type": "integer",
                "description": "Images accepted and not yet answered, over all model replicas.",
            },
            "images_served": {
                "type": "integer",
                "description": "Images answered over all model replicas, since the HTTP face started.",
            },
            **facts["properties"],
        },
        "description": "The other fields are those of the one model replica that answered: `replica`.",
    }


HEALTH: dict[int | str, Schema] = {
    200: {
        "description": "It paints. `busy`: the model was too busy to answer, its fields are the last known.",
        "content": {"application/json": {"schema": health_body(["ok", "busy"])}},
    },
    503: {
        "description": "`loading`: no model replica has answered yet. `failed`: none answers any more, or "
        "the device of the one that did has failed.",
        "content": {"application/json": {"schema": health_body(["failed", "loading"])}},
    },
}
