"""From settings to a chain: where the profile's endpoints and credentials come from."""

from pathlib import Path
from typing import Any

import pydantic

from raynest_pipeline.chain.chain import Chain, build_chain
from raynest_pipeline.errors import NotReadyError, SettingsError
from raynest_pipeline.settings import Profile, Settings, describe_problem
from raynest_pipeline.waiting import Clock

TINY_MODEL = Path(__file__).parent.parent / "serving" / "tinymodel" / "weights"
"""A small trained model, where one is shipped."""


def sandbox_model() -> str:
    """The model of a laptop without internet: the shipped one, else an untrained one that says so."""
    return str(TINY_MODEL) if (TINY_MODEL / "model_index.json").is_file() else "tiny-untrained"


def open_chain(
    settings: Settings,
    clock: Clock | None = None,
    *,
    start_sandbox: bool = True,
    patience_seconds: float = 60.0,
) -> Chain:
    """The chain for these settings; profile `sandbox` starts the sandbox when it isn't running.

    `patience_seconds` is how long one cloud call may be retried.

    Raises:
        NotReadyError: The sandbox does not start, or does not run and must not be started.
        AccessError: No cloud credentials.
        InputError: The given kubeconfig cannot be used.
        SettingsError: As `with_sandbox`.
    """
    if settings.profile is Profile.SANDBOX:
        settings = with_sandbox(settings, start=start_sandbox)
    return build_chain(settings, clock, patience_seconds=patience_seconds)


def with_sandbox(settings: Settings, *, start: bool) -> Settings:
    """The settings with the running sandbox's endpoint and keys in place of a cloud account's.

    What is bought, and how, stays as it was: only the way there changes. A GPU-less machine gets a smaller
    Ray worker, unless the settings say otherwise.

    Raises:
        NotReadyError: The sandbox does not start, or does not run and must not be started.
        SettingsError: Options of the service do not fit the sandbox's defaults.
    """
    from raynest_pipeline.sandbox import control

    try:
        info = control.status(settings.sandbox_dir)
        if info is None and start:
            options = control.SandboxOptions(
                time_scale=settings.sandbox.time_scale, kuberay_version=settings.sandbox.kuberay_version
            )
            info = control.start(settings.sandbox_dir, options=options)
    except control.SandboxError as error:
        raise NotReadyError("The sandbox does not start.", why=str(error)) from None
    if info is None:
        raise NotReadyError(
            "The sandbox is not running.", fix="Run `raynest up`: it starts the sandbox, and the chain in it."
        )
    alibaba: dict[str, Any] = {
        **settings.alibaba.model_dump(),
        "endpoint": info.cloud_endpoint,
        "access_key_id": info.access_key_id,
        "access_key_secret": info.access_key_secret,
        "security_token": None,
        "region_id": info.region,
        "control_region_id": None,
    }
    ray_service = {**SANDBOX_DEFAULTS, **settings.ray_service.model_dump(exclude_unset=True)}
    try:
        return Settings(**{**_given(settings), "alibaba": alibaba, "ray_service": ray_service})
    except pydantic.ValidationError as error:
        # An option that fits the larger batches of a cluster, say.
        raise SettingsError(
            "The settings do not fit the sandbox:\n" + "\n".join(describe_problem(e) for e in error.errors()),
            fix="Set ray_service.max_batch_size beside ray_service.serving.",
        ) from None


SANDBOX_DEFAULTS: dict[str, Any] = {
    "model": sandbox_model(),
    "head_cpus": 1,
    "head_memory": "2Gi",
    "worker_cpus": 2,
    "worker_memory": "4Gi",
    "max_batch_size": 4,
}


def _given(settings: Settings) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in type(settings).model_fields}


__all__ = ["open_chain", "with_sandbox"]
