"""The engine `ray`: a batch as a Ray Job, sent to the cluster and watched from here.

The job goes on without its submitter. Its submission id follows from the batch and from how it is to be
made, so that the same command attaches to it instead of starting another.
"""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from raynest_pipeline.errors import InputError, NotReadyError, RefusedError
from raynest_pipeline.images.bulk.follow import Ended, Follower, OnLog, OnProgress
from raynest_pipeline.images.bulk.jobs import Job, JobsApi
from raynest_pipeline.images.bulk.package import JOB_MODULE, build_package
from raynest_pipeline.images.bulk.plan import MODEL_MODULES, Plan
from raynest_pipeline.images.interrupts import kept_interruptions
from raynest_pipeline.images.result import BatchResult, HourlyPrice
from raynest_pipeline.kube.http import HttpTarget
from raynest_pipeline.kube.rayservice.manifest import replica_packages
from raynest_pipeline.settings import Profile, Settings
from raynest_pipeline.waiting import Clock, SystemClock

MAX_LOST = 5
"""So many times a job that its cluster lost is sent again."""
LOCK_SECONDS = 150.0
"""A cluster that has been replaced goes on for rayClusterDeletionDelaySeconds, 60 by default, and so does
its job, which nobody sees any more: the next one waits for the batch."""
_PACKAGES = {"yaml": "pyyaml"}
BATCH_KEY = "raynest_batch"
"""Metadata of a job: whose it is."""


@dataclass(frozen=True)
class RayBatch:
    """What the engine needs beside a road to the dashboard."""

    plan: Plan
    model_packages: tuple[str, ...] = ()
    """What a model needs beside Ray: the Serve replicas' own (ray_service.pip_packages)."""
    index_url: str | None = None
    """Package index."""

    def pip(self, modules: Sequence[str]) -> dict[str, Any]:
        """runtime_env's pip for an image that lacks `modules`, and for no other.

        With the model's packages it is the Serve replicas' own, so that a node has it already.
        """
        model = set(modules) & set(MODEL_MODULES)
        others = [_PACKAGES.get(name, name) for name in modules if name not in model]
        found: dict[str, Any] = {"packages": [*(self.model_packages if model else ()), *others]}
        if self.index_url:
            found["pip_install_options"] = ["--index-url", self.index_url]
        return found


def ray_batch(settings: Settings, batch_id: str, root: str, prompts_sha256: str) -> RayBatch:
    """The batch as the settings want it on Ray.

    Args:
        settings: `batch` and `ray_service`.
        batch_id: Of the batch.
        root: The output folder or URL on this machine.
        prompts_sha256: Of the prompts.

    Raises:
        InputError: The Ray nodes cannot reach `root`.
    """
    batch, service = settings.batch, settings.ray_service
    sandbox = settings.profile is Profile.SANDBOX
    gpus = batch.ray_gpus
    if gpus is None:
        # The sandbox's GPU is only a number of Ray's, and its one is the Serve replica's.
        gpus = 0.0 if sandbox else float(service.gpus_per_replica)
    plan = Plan(
        batch_id=batch_id,
        root=_root_on_nodes(settings, root),
        prompts_sha256=prompts_sha256,
        mode=batch.ray_mode,
        size=batch.size,
        steps=batch.steps,
        guidance=batch.guidance,
        attempts=batch.attempts,
        deadline_seconds=batch.deadline_seconds,
        verify=batch.verify,
        actors=batch.ray_actors,
        gpus=gpus,
        cpus=0.5 if sandbox else 1.0,
        serving=service.serving_args() | {"num_gpus": gpus},
        limits=service.manifest is None or batch.ray_mode == "actors",
    )
    return RayBatch(plan, tuple(replica_packages(service)), service.pip_index_url)


def _root_on_nodes(settings: Settings, root: str) -> str:
    """Where the nodes write: nothing is sent before it is known that they can."""
    if settings.batch.ray_output:
        there = settings.batch.ray_output.rstrip("/")
        if "://" not in there and not there.startswith("/"):
            # Each worker would write into its own temporary folder for the job's code.
            raise InputError(
                f"batch.ray_output is {settings.batch.ray_output!r}, which is no absolute path on the nodes.",
                fix="Name the folder as it is mounted on every Ray node, or the URL of an object store.",
            )
        return there
    if "://" in root or settings.profile is Profile.SANDBOX:
        return root
    raise InputError(
        f"batch.engine is ray, and the output folder {root} is on this machine: "
        "the Ray nodes cannot write there.",
        fix="Set output to an object store (oss://..., s3://...) that both reach, "
        "or batch.ray_output to where that folder is mounted on the nodes; or use batch.engine: http.",
    )


def generate_on_ray(
    batch: RayBatch,
    dashboard: HttpTarget,
    *,
    clock: Clock | None = None,
    price: HourlyPrice | None = None,
    on_progress: OnProgress | None = None,
    on_log: OnLog | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> BatchResult:
    """Make the images of a batch that are not there yet, on the cluster.

    The batch's own copy of its prompts must lie in its store.

    Args:
        batch: See `ray_batch`.
        dashboard: The road to the Ray dashboard.
        price: Of the cluster; None: no cost is told.
        on_progress: Called in this thread at the pace of the job's own progress.
        on_log: Hears the job's other output, line by line.
        should_stop: Called in this thread at each look; True stops the job.

    Raises:
        RaynestError: As the job met it (see `job.make`).
        NotReadyError: The job failed for a reason that it could not tell; carries the end of its log.
        RefusedError: Another job makes this batch in another way, or the dashboard does not take the job.
        UnreachableError: The dashboard has not answered for ten minutes; the job may go on.
        AccessError: The credentials are no longer accepted; the job goes on.
        BaseException: An interruption of this thread; the job has been stopped, the batch can be resumed.
    """
    clock = clock or SystemClock()
    with JobsApi(dashboard) as api, kept_interruptions() as raise_kept:
        follower = Follower(api, clock, on_progress, on_log, should_stop, price, raise_kept)
        plan = replace(batch.plan, lock_seconds=LOCK_SECONDS)
        pip: dict[str, Any] | None = None
        lost = 0
        while True:
            jobs = follower.patiently(api.jobs)
            running = _running(jobs, plan)
            end = follower.follow(running) if running else _send(api, plan, pip, follower, jobs)
            if end.result is not None:
                return end.result
            if end.needs:
                if pip is not None:
                    raise _lacks(end)
                pip = batch.pip(end.needs)
                continue
            lost += 1
            if lost > MAX_LOST:
                raise NotReadyError(
                    f"The cluster lost the batch's job {lost} times.",
                    why=end.why,
                    fix="See `raynest status`; then run the same batch again: finished images are kept.",
                )


def _prefix(plan: Plan) -> str:
    return f"raynest-{plan.batch_id[:60]}-{plan.digest}-"


def _owner(plan: Plan) -> str:
    return f"{plan.root}/{plan.batch_id}"


def _running(jobs: Sequence[Job], plan: Plan) -> str | None:
    """The id of the job that is making this batch, in this way; None when there is none.

    Raises:
        RefusedError: It is being made in another way.
    """
    for job in jobs:
        if not job.over and job.metadata.get(BATCH_KEY) == _owner(plan):
            if job.id.startswith(_prefix(plan)):
                return job.id
            raise _other_way(job)
    return None


def _send(
    api: JobsApi, plan: Plan, pip: Mapping[str, Any] | None, follower: Follower, jobs: Sequence[Job]
) -> Ended:
    """Start a job for this plan, and follow it."""
    package = build_package()
    follower.patiently(lambda: api.ensure_package(package))
    job_id = f"{_prefix(plan)}{_last_number(jobs, _prefix(plan)) + 1}"
    request = {
        "submission_id": job_id,
        "entrypoint": f"python -m {JOB_MODULE} {shlex.quote(plan.to_json())}",
        "runtime_env": {"working_dir": package.uri, **({"pip": dict(pip)} if pip else {})},
        "metadata": {BATCH_KEY: _owner(plan)},
    }
    # False: somebody else has just sent the very same job, or an answer of ours was lost. It is followed.
    return follower.follow(job_id, start=lambda: api.submit(request))


def _last_number(jobs: Sequence[Job], prefix: str) -> int:
    """The highest of the numbers at the ends of the ids. Jobs in between may have been deleted, and an id
    that is taken would lead to an old job, and its old result.
    """
    ends = [job.id.removeprefix(prefix) for job in jobs if job.id.startswith(prefix)]
    return max((int(end) for end in ends if end.isdecimal()), default=0)


def _other_way(job: Job) -> RefusedError:
    return RefusedError(
        f"The Ray job {job.id} is making this batch with other prompts or settings.",
        fix="Wait for it to end, or stop it on the Ray dashboard (`raynest open dashboard`); then run again.",
    )


def _lacks(end: Ended) -> NotReadyError:
    return NotReadyError(
        f"The Ray image lacks {', '.join(end.needs)}, and ray_service.pip_packages does not bring it.",
        fix="Add it to ray_service.pip_packages, or use an image that has it.",
    )
