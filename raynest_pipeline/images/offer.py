"""What an endpoint offers, and what to ask of it for a prompt.

The stock application (ray-service.stable-diffusion.yaml) takes `prompt` and `img_size`; ours takes
seed, steps, guidance and negative_prompt as well, and names its model under /health.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raynest_pipeline.images.names import content_key
from raynest_pipeline.images.prompts import Prompt
from raynest_pipeline.settings import Batch

STOCK_PARAMETERS = frozenset({"prompt", "img_size"})
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
    """

    parameters: frozenset[str] = STOCK_PARAMETERS
    model: str = ""
    revision: str = ""
    defaults: Mapping[str, float] = field(default_factory=dict)
    documented: bool = False

    @property
    def untrained(self) -> bool:
        """Whether the model says of itself that it has not been trained."""
        return "untrained" in self.model.lower() or "random weights" in self.model.lower()


@dataclass(frozen=True)
class ImageRequest:
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
    wanted: dict[str, Any] = {
        "negative_prompt": prompt.negative_prompt or None,
        "seed": prompt.seed,
        "img_size": prompt.size or settings.size,
        "steps": prompt.steps or settings.steps,
        "guidance": settings.guidance if prompt.guidance is None else prompt.guidance,
    }
    sent = {name: value for name, value in wanted.items() if value is not None and name in offer.parameters}
    ignored = tuple(name for name, value in wanted.items() if value is not None and name not in sent)

    def effective(name: str) -> Any:
        return sent.get(name, offer.defaults.get(name))

    size, steps, guidance = effective("img_size"), effective("steps"), effective("guidance")
    negative = str(sent.get("negative_prompt", ""))
    key = content_key(
        model=offer.model,
        revision=offer.revision,
        prompt=prompt.prompt,
        negative_prompt=negative,
        seed=prompt.seed,
        size=None if size is None else int(size),
        steps=None if steps is None else int(steps),
        guidance=guidance,
    )
    return ImageRequest(
        prompt=prompt.prompt,
        negative_prompt=negative,
        seed=prompt.seed,
        size=None if size is None else int(size),
        steps=None if steps is None else int(steps),
        guidance=guidance,
        ignored=ignored,
        query={"prompt": prompt.prompt} | sent,
        key=key,
    )


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
    )


def _dict(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
