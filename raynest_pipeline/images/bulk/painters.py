"""Who paints: the warm Serve replicas, or actors of the job's own. Runs in the job's driver."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raynest_pipeline.errors import NotReadyError, RaynestError
from raynest_pipeline.images.bulk.by_actors import GpuPainter, facts_of_model
from raynest_pipeline.images.bulk.by_serve import PAINTER, ServeCaller
from raynest_pipeline.images.bulk.plan import Plan
from raynest_pipeline.images.offer import OPTIONAL_PARAMETERS, Offer

REPLICAS_PER_CALLER = 16
"""A caller checks and stores some 100 images a second: enough for as many replicas of one or two a second."""
CALLERS_AT_ONCE = 2
"""While one caller waits for the last images of its chunk, the other's keep the replicas busy."""
CALLER_CPUS = 0.05
CALLS_PER_ACTOR = 4
"""Pipeline calls in one chunk: the device waits only between chunks, some 0.1 s, for the last encoding."""
DEATHS_PER_CHUNK = 3
DEATHS_PER_ACTOR = 20
"""So often an actor may die at one chunk, and in all. Ray Data's own default is without end: an image that
kills its process would keep the GPUs for ever. Lost nodes count, too, so that it is not once only."""
FACTS = ("model", "revision", "native_size", "default_steps", "default_guidance", "max_batch_size")
FACTS_SECONDS = 900.0
"""For the first model to load, its packages and its files included; or for a GPU to come free."""


@dataclass(frozen=True)
class Painters:
    """A pool of actors for Ray Data, and what they offer.

    Attributes:
        offer: As an endpoint's: the same model and defaults make the same content keys.
        actor: The class of the pool.
        size: Actors in it.
        chunk: Rows that one actor is given at a time.
        remote: Ray's options of one actor.
        plan: For the constructor.
    """

    offer: Offer
    actor: type
    size: int
    chunk: int
    remote: Mapping[str, Any]
    plan: Plan

    @property
    def in_flight(self) -> int:
        """Images in work at a time."""
        return self.size * self.chunk

    def paint(self, dataset: Any) -> Any:
        """The dataset of answers to a dataset of packed chunks."""
        from ray.data import ActorPoolStrategy

        return dataset.map_batches(
            self.actor,
            fn_constructor_kwargs={"plan": self.plan.to_json()},
            batch_size=1,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=self.size),
            max_restarts=DEATHS_PER_ACTOR,
            max_task_retries=DEATHS_PER_CHUNK,
            **self.remote,
        )


def painters_for(plan: Plan) -> Painters:
    """The painters of the plan's mode.

    Raises:
        NotReadyError: There are none: no such application, no free GPU, no model.
    """
    return _serve(plan) if plan.mode == "serve" else _actors(plan)


def offer_of(facts: Mapping[str, Any]) -> Offer:
    """What our application offers, from what a replica says of itself; as `offer.offer_from` reads it."""
    return Offer(
        parameters=frozenset({"prompt", *OPTIONAL_PARAMETERS}),
        model=str(facts["model"]),
        revision=str(facts["revision"]),
        defaults={
            "img_size": facts["native_size"],
            "steps": facts["default_steps"],
            "guidance": facts["default_guidance"],
        },
        documented=True,
    )


def _serve(plan: Plan) -> Painters:
    from ray import serve
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException

    found = serve.status().applications
    painter = found[plan.application].deployments.get(PAINTER) if plan.application in found else None
    if painter is None:
        raise NotReadyError(
            f"The cluster serves no application {plan.application!r} with a deployment {PAINTER!r}.",
            why=f"it serves: {', '.join(sorted(found)) or 'nothing'}",
            fix="Run `raynest up`, or make this batch with batch.engine: http or batch.ray_mode: actors.",
        )
    handle = serve.get_deployment_handle(PAINTER, plan.application)
    try:
        told = handle.facts.remote().result(timeout_s=FACTS_SECONDS)
    except (RayError, RayServeException, TimeoutError) as error:
        why = f"{type(error).__name__}: {error}"[:500]
        raise NotReadyError(
            "The Serve replicas do not answer.", why=why, fix="See `raynest status`."
        ) from None
    # By name: the replica may run another release of our code, with more or fewer facts.
    facts = {name: getattr(told, name) for name in FACTS}
    # With autoscaling for as many as there may be: those that are there give the rest back, to be asked
    # again, and the queue that builds up is what makes Serve add the others.
    most = int(plan.serving.get("max_replicas") or 1) if plan.limits else 1
    replicas = max(most, sum(painter.replica_states.values()))
    callers = math.ceil(replicas / REPLICAS_PER_CALLER)
    chunk = math.ceil(replicas / callers) * int(facts["max_batch_size"])
    remote = {"num_cpus": CALLER_CPUS}
    return Painters(offer_of(facts), ServeCaller, CALLERS_AT_ONCE * callers, chunk, remote, plan)


def _actors(plan: Plan) -> Painters:
    import ray

    there, needed = ray.cluster_resources().get("GPU", 0.0), plan.actors * plan.gpus
    if there < needed:
        raise NotReadyError(
            f"{plan.actors} actors (batch.ray_mode: actors) need {needed:g} GPUs, the cluster has {there:g}.",
            fix="Lower batch.ray_actors or batch.ray_gpus, or add workers (ray_service.replicas; with "
            "ray_service.max_replicas idle ones have been taken away).",
        )
    remote = {"num_cpus": plan.cpus, "num_gpus": plan.gpus}
    # max_calls: the process ends with the task, and with it its hold on the GPU's memory.
    task = ray.remote(max_calls=1, max_retries=1, **remote)(facts_of_model)
    pending = task.remote(plan.to_json())
    try:
        facts = ray.get(pending, timeout=FACTS_SECONDS)
    except ray.exceptions.GetTimeoutError:
        ray.cancel(pending, force=True)
        free = ray.available_resources()
        raise NotReadyError(
            f"No actor with {plan.gpus:g} GPUs and {plan.cpus:g} CPUs came up within {FACTS_SECONDS:.0f} s.",
            why=f"free now: {free.get('GPU', 0.0):g} GPUs, {free.get('CPU', 0.0):g} CPUs; "
            "the Serve replicas keep theirs",
            fix="Add workers, lower batch.ray_gpus, or use batch.ray_mode: serve.",
        ) from None
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, RaynestError):
            raise error.cause from None
        raise
    chunk = CALLS_PER_ACTOR * int(facts["max_batch_size"])
    return Painters(offer_of(facts), GpuPainter, plan.actors, chunk, remote, plan)
