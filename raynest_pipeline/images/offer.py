"""What an endpoint offers, and what to ask of it for a prompt.

The stock application (ray-service.stable-diffusion.yaml) takes `prompt` and `img_size`; ours takes
seed, steps, guidance and negative_prompt as well, and names its model under /health.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from raynest_pipeline.images.names import content_key
from raynest_pipeline.images.prompts import Prompt
from raynest_pipeline.settings_sections import Batch

STOCK_PARAMETERS = frozenset({"prompt", "img_size"})
MANY_PATH = "/v1/images"
SOME_ITEMS = 16
"""Images in one request to an endpoint that takes several and does not say how many."""
OPTIONAL_PARAMETERS = ("negative_prompt", "seed", "img_size", "steps", "guidance")


@dataclass(frozen=True)
class Offer:
    """What an endpoint offers.

    Attributes:
        parameters: Query parameters that GET /imagine takes.
        model: Name of the model, or "" when the endpoint does not tell.
        revision: Of the model, or "".
        defaults: The endpoint's own size, steps and guidance, as far as it tells.
        documented: Whether it has an /openapi.json.
        items: Images that one POST /v1/images may ask for; 0 without that endpoint.
        at_once: Images that it paints at a time, over all replicas; 0 when it does not tell.
    """

    parameters: frozenset[str] = STOCK_PARAMETERS
    model: str = ""
    revision: str = ""
    defaults: Mapping[str, float] = field(default_factory=dict)
    documented: bool = False
    items: int = 0
    at_once: int = 0

    @property
    def untrained(self) -> bool:
        """Whether the model says of itself that it has not been trained."""
        return "untrained" in self.model.lower() or "random weights" in self.model.lower()


class ImageRequest(NamedTuple):
    """One image as it is asked for: the prompt's values, else the settings', else the endpoint's own.

    None means that the endpoint takes its own and does not tell which.
    """

    prompt: str
    negative_prompt: str
    seed: int
    size: int | None
    steps: int | None
    guidance: float | None
    ignored: tuple[str, ...]
    """Parameters the prompt names and the endpoint does not take."""
    query: Mapping[str, str | int | float]
    """What is sent."""
    key: str
    """The content key (see `names.content_key`)."""


def request_for(prompt: Prompt, settings: Batch, offer: Offer) -> ImageRequest:
    """What to ask of the endpoint for `prompt`."""
    # Plain steps: this runs for each prompt of a finished batch, too.
    wanted = (
        ("negative_prompt", prompt.negative_prompt or None),
        ("seed", prompt.seed),
        ("img_size", prompt.size or settings.size),
        ("steps", prompt.steps or settings.steps),
        ("guidance", settings.guidance if prompt.guidance is None else prompt.guidance),
    )
    parameters, ignored = offer.parameters, tuple[str, ...]()
    sent: dict[str, Any] = {"prompt": prompt.prompt}
    for name, value in wanted:
        if value is not None:
            if name in parameters:
                sent[name] = value
            else:
                ignored += (name,)
    known = {**offer.defaults, **sent}
    size, steps, guidance = known.get("img_size"), known.get("steps"), known.get("guidance")
    negative = str(sent.get("negative_prompt", ""))
    size, steps = None if size is None else int(size), None if steps is None else int(steps)
    key = content_key(
        model=offer.model,
        revision=offer.revision,
        prompt=prompt.prompt,
        negative_prompt=negative,
        seed=prompt.seed,
        size=size,
        steps=steps,
        guidance=guidance,
    )
    return ImageRequest(prompt.prompt, negative, prompt.seed, size, steps, guidance, ignored, sent, key)


def parameters_of(openapi: Mapping[str, Any], path: str = "/imagine") -> Mapping[str, Any] | None:
    """The query parameters of GET `path` with their schemas; None when the document has no such path."""
    operation = _dict(_dict(_dict(openapi.get("paths")).get(path)).get("get"))
    if not operation:
        return None
    listed = operation.get("parameters")
    parameters = [_dict(p) for p in listed] if isinstance(listed, list) else []
    in_query = [p for p in parameters if p.get("in") == "query" and "name" in p]
    return {str(p["name"]): _dict(p.get("schema")) for p in in_query}


def offer_from(openapi: Mapping[str, Any], health: Mapping[str, Any]) -> Offer | None:
    """The offer that an OpenAPI document and our application's /health describe; None without /imagine."""
    parameters = parameters_of(openapi)
    if parameters is None:
        return None
    told = {
        "img_size": health.get("native_size", _dict(parameters.get("img_size")).get("default")),
        "steps": health.get("default_steps", _dict(parameters.get("steps")).get("default")),
        "guidance": health.get("default_guidance", _dict(parameters.get("guidance")).get("default")),
    }
    return Offer(
        parameters=frozenset(parameters),
        model=str(health.get("model") or ""),
        revision=str(health.get("revision") or ""),
        defaults={k: v for k, v in told.items() if isinstance(v, (int, float)) and not isinstance(v, bool)},
        documented=True,
        items=items_of(openapi),
        at_once=_count(health.get("max_batch_size")) * max(1, _count(health.get("replicas"))),
    )


def items_of(openapi: Mapping[str, Any]) -> int:
    """How many images one POST /v1/images may ask for; 0 when there is no such path, or not ours."""
    body: Mapping[str, Any] = openapi
    for key in ("paths", MANY_PATH, "post", "requestBody", "content", "application/json", "schema"):
        body = _dict(body.get(key))
    images = _dict(_dict(_referred(openapi, body).get("properties")).get("images"))
    return _count(images.get("maxItems", SOME_ITEMS)) if images else 0


def _referred(openapi: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema that a local `$ref` stands for."""
    reference = schema.get("$ref")
    if not isinstance(reference, str) or not reference.startswith("#/"):
        return schema
    found = openapi
    for key in reference[2:].split("/"):
        found = _dict(found.get(key))
    return found


def _count(value: object) -> int:
    return max(0, value) if isinstance(value, int) and not isinstance(value, bool) else 0


def _dict(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
