"""What a bulk job is told, and what it tells: plain JSON in both directions, so that releases may differ."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from raynest_pipeline.errors import RaynestError, RemoteError
from raynest_pipeline.settings_sections import Batch

Mode = Literal["serve", "actors"]

MARK = "raynest"
"""Key that every line of ours in a job's log carries: the kind of the message."""

MODEL_MODULES = ("torch", "diffusers", "transformers")
"""What an actor needs to hold a model, and a Serve replica as well: ray_service.pip_packages."""


_HOW_MANY = frozenset(
    {
        *("replicas", "min_replicas", "max_replicas", "num_cpus", "num_gpus", "max_batch_size"),
        *("queue_size", "max_images_per_request"),
    }
)
"""Serving options that change no image."""


@dataclass(frozen=True)
class Plan:
    """A batch, as the job's driver is to make it. Holds no secrets: Ray's dashboard shows it.

    Attributes:
        batch_id: Of the batch.
        root: The output folder or URL, as the cluster's nodes reach it.
        prompts_sha256: Of the batch's own copy of its prompts; another one is refused.
        mode: serve: by the warm Serve replicas. actors: by a pool of the job's own.
        size, steps, guidance: Of prompts without; None: the model's own.
        attempts: For one image.
        deadline_seconds: For one image over all its attempts, from the first on (mode serve).
        verify: Read every finished image again, see `present.Present`.
        application: Name of the Serve application (mode serve).
        actors: How many (mode actors).
        gpus, cpus: Ray's reservation for one actor.
        serving: ServingOptions of an actor: the same as the Serve application's `args`.
        limits: Whether the service's limits follow from `serving`; not with a RayService of the user's own.
        lock_seconds: How long another holder of the batch is waited for: a cluster that is being replaced
            still runs its job for a while.
    """

    batch_id: str
    root: str
    prompts_sha256: str
    mode: Mode = "serve"
    size: int | None = None
    steps: int | None = None
    guidance: float | None = None
    attempts: int = 4
    deadline_seconds: float = 900.0
    verify: bool = False
    application: str = "raynest"
    actors: int = 1
    gpus: float = 0.0
    cpus: float = 1.0
    serving: Mapping[str, Any] = field(default_factory=dict)
    limits: bool = True
    lock_seconds: float = 0.0

    def to_json(self) -> str:
        """One line; the same plan is the same text."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """The plan of `to_json`; keys of another release are left out."""
        known = {f.name for f in fields(cls)}
        return cls(**{key: value for key, value in json.loads(text).items() if key in known})

    @property
    def digest(self) -> str:
        """Eight hex digits: the same batch made in the same way, whoever asks for it."""
        text = json.dumps([self.batch_id, self.root, self.mode, self.prompts_sha256, self._what])
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    @property
    def _what(self) -> list[Any]:
        serving = sorted((key, value) for key, value in self.serving.items() if key not in _HOW_MANY)
        return [self.size, self.steps, self.guidance, self.application, serving]

    @property
    def batch(self) -> Batch:
        """The settings from which requests are made, as the HTTP engine makes them."""
        return Batch(size=self.size, steps=self.steps, guidance=self.guidance)


def say(kind: str, **values: Any) -> None:
    """Print one line for the one who watches the job."""
    line = json.dumps({MARK: kind, **values}, separators=(",", ":"))
    # In one piece, and begun anew: somebody else's half line in front would make it unreadable.
    print(f"\n{line}\n", end="", flush=True)


def heard(line: str) -> dict[str, Any] | None:
    """What a line of a job's log says; None for a line of anybody else, or a torn one."""
    if not line.startswith(f'{{"{MARK}":'):
        return None
    try:
        message = json.loads(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) and isinstance(message.get(MARK), str) else None


def words_of(error: RaynestError) -> dict[str, str]:
    """An error as JSON."""
    return {"error": type(error).__name__, "what": error.what, "why": error.why, "fix": error.fix}


def error_of(words: Mapping[str, Any]) -> RaynestError:
    """The error of `words_of`; one of a class that this release does not know is a plain `RaynestError`."""
    kinds = {cls.__name__: cls for cls in RaynestError.__subclasses__() if cls is not RemoteError}
    kind = kinds.get(str(words.get("error")), RaynestError)
    return kind(str(words.get("what", "")), why=str(words.get("why", "")), fix=str(words.get("fix", "")))
