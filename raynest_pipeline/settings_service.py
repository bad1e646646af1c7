"""The section of the settings that says what is deployed: the RayService."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from raynest_pipeline.serving.options import resolve_options
from raynest_pipeline.settings_model import check_revision, valid_model
from raynest_pipeline.settings_sections import Section

_DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


def _valid_service_name(name: str) -> str:
    if len(name) > 47 or not _DNS_1035.fullmatch(name):
        raise ValueError("must be a DNS-1035 label of at most 47 characters: KubeRay refuses longer names")
    return name


class Toleration(Section):
    """A pod's toleration of a node taint."""

    key: str
    operator: Literal["Equal", "Exists"] = "Exists"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None


_SERVING_SETTINGS = {
    "model": "model",
    "revision": "revision",
    "hf_endpoint": "hf_endpoint",
    "modelscope_endpoint": "modelscope_endpoint",
    "num_gpus": "gpus_per_replica",
    "replicas": "replicas",
    "min_replicas": "replicas",
    "max_replicas": "max_replicas",
    "max_batch_size": "max_batch_size",
}
"""Option of the Serve application -> the setting of `ray_service` that it gets its value from."""


class RayServiceSettings(Section):
    """The RayService that is deployed."""

    name: Annotated[str, AfterValidator(_valid_service_name)] = Field(
        "stable-diffusion", description="Name of the RayService object."
    )
    manifest: str | None = Field(
        None,
        description="Path or URL of your own RayService YAML, applied as it is. "
        "Unset: ours, from these settings.",
    )
    image: str | None = Field(
        None, description="Container image. Unset: rayproject/ray:<ray_version>-py311-gpu (or -py311)."
    )
    ray_version: str = Field("2.60.0", description="Must be the Ray release in the image.")
    gpus_per_replica: int = Field(1, ge=0, description="GPUs of one model replica, and of its worker.")
    replicas: int = Field(
        1, ge=1, description="Model replicas, one worker each; with max_replicas the fewest."
    )
    max_replicas: int | None = Field(
        None,
        ge=1,
        description="Most model replicas. Set, it turns autoscaling on: Serve adds and removes replicas by "
        "load, and Ray's autoscaler the workers for them. raynest buys no node for them: "
        "`alibaba.worker_count` must be enough for all. A node autoscaler of the cluster's own may buy some. "
        "Unset: always `replicas`.",
    )
    head_cpus: float = Field(2, gt=0, description="CPUs of the head pod.")
    head_memory: str = Field("8Gi", description="Memory of the head pod.")
    worker_cpus: float = Field(4, gt=0, description="CPUs of a worker pod.")
    worker_memory: str = Field("16Gi", description="Memory of a worker pod.")
    tolerations: tuple[Toleration, ...] = Field(
        (
            Toleration(key="nvidia.com/gpu", effect="NoSchedule"),
            Toleration(key="ray.io/node-type", operator="Equal", value="worker", effect="NoSchedule"),
        ),
        description="Of the worker pods.",
    )
    model: Annotated[str, AfterValidator(valid_model)] = Field(
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        description="Hugging Face id, `modelscope://org/name`, an object-store URL (`s3://`, `oss://`, "
        "`gs://`), or a folder on the Ray nodes (docs/operations.md, Models). "
        "(`stabilityai/stable-diffusion-2`, which the stock sample names, no longer exists.)",
    )
    revision: str | None = Field(
        None, description="Branch, tag or commit of a Hugging Face or ModelScope model."
    )
    hf_endpoint: str | None = Field(
        None,
        pattern=r"^https?://",
        description="Hugging Face mirror, e.g. https://hf-mirror.com from mainland China.",
    )
    modelscope_endpoint: str | None = Field(
        None, pattern=r"^https?://", description="ModelScope's address. Unset: https://www.modelscope.cn."
    )
    cache_claim: str | None = Field(
        None,
        pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$",
        description="PersistentVolumeClaim in the namespace for the workers' models: a new pod finds them "
        "there. Unset: they last as long as the pod.",
    )
    pip_index_url: str | None = Field(None, description="Package index for the replicas' pip environment.")
    pip_packages: tuple[str, ...] = Field(
        (
            "torch==2.13.0",
            "diffusers>=0.40,<1",
            "transformers>=4.55,<6",
            "accelerate>=1.10,<2",
            "safetensors>=0.5,<1",
        ),
        description="What the replicas need beside Ray. Empty when the image brings it.",
    )
    code: Literal["configmap", "working_dir", "image"] = Field(
        "configmap",
        description="How the Serve application gets into the pods: a ConfigMap on PYTHONPATH (any stock Ray "
        "image), a working_dir archive, or built into the image (deploy/Dockerfile).",
    )
    working_dir: str | None = Field(
        None, description="URL of an archive with the code; goes with code: working_dir."
    )
    token_auth: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Ray token authentication. auto: on where the cluster's KubeRay offers it "
        "(1.5.1 and later).",
    )
    max_batch_size: int = Field(8, ge=1, le=64, description="Images in one pipeline call.")
    serving: dict[str, Any] = Field(
        default_factory=dict,
        description="More options of the Serve application, by the names in docs/operations.md (The "
        "service's options), e.g. {compile: default}.",
    )
    env: dict[str, str] = Field(
        default_factory=dict,
        description="More environment variables for the Ray containers. "
        "They stand in clear in the RayService: whoever may read that sees them.",
    )

    @model_validator(mode="after")
    def _model_is_possible(self) -> Self:
        check_revision(self.model, self.revision, self.hf_endpoint)
        return self

    @model_validator(mode="after")
    def _serving_is_possible(self) -> Self:
        """What the application would refuse only on the cluster, when that is bought."""
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(
                f"max_replicas is {self.max_replicas}, but replicas, the fewest, is {self.replicas}"
            )
        for option, own in _SERVING_SETTINGS.items():
            if option in self.serving:
                raise ValueError(f"serving.{option} has a setting of its own: ray_service.{own}")
        resolve_options(self.serving_args(), {})
        return self

    def serving_args(self) -> dict[str, Any]:
        """The Serve application's `args` (serving/options.py); what is not set is left out."""
        replicas = {"replicas": self.replicas}
        if self.max_replicas is not None:
            replicas = {"min_replicas": self.replicas, "max_replicas": self.max_replicas}
        arguments: dict[str, Any] = {
            **self.serving,
            "model": self.model,
            "num_gpus": self.gpus_per_replica,
            **replicas,
            "max_batch_size": self.max_batch_size,
        }
        own = {
            "revision": self.revision,
            "hf_endpoint": self.hf_endpoint,
            "modelscope_endpoint": self.modelscope_endpoint,
        }
        return arguments | {option: value for option, value in own.items() if value}

    @property
    def most_replicas(self) -> int:
        """Model replicas, and workers, that there may ever be."""
        return self.max_replicas or self.replicas
