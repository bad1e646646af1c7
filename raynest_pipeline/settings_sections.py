"""The sections of the settings: every knob with its type, default and description.

docs/settings.md is generated from the descriptions here.
"""

import re
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr

_NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")


class Profile(StrEnum):
    """Where the chain runs. It changes endpoints and credentials, never the code that runs."""

    SANDBOX = "sandbox"
    ALIBABA = "alibaba"
    KUBECONFIG = "kubeconfig"


def valid_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(
            "must be 1 to 63 of a-z, 0-9 and '-', start with a letter and not end with '-': it becomes "
            "the Kubernetes namespace (RFC 1123), and a wrong one fails only ten minutes into the deployment"
        )
    return name


class Section(BaseModel):
    """Unknown keys are errors; values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Alibaba(Section):
    """The cloud account and what is bought in it."""

    region_id: str = Field("ap-southeast-1", description="Region in which the cluster is made.")
    control_region_id: Literal["cn-hangzhou", "ap-southeast-1"] | None = Field(
        None,
        description="Region of the Compute Nest control plane; there are only two. "
        "Unset: the cluster's own region if it is one of them, else cn-hangzhou for cn-*, "
        "ap-southeast-1 elsewhere.",
    )
    zone_id: str | None = Field(None, description="Zone for the workers. Unset: the first one with stock.")
    access_key_id: str | None = Field(
        None,
        description="Unset: the SDK's default credential chain (environment, CLI profile, instance role).",
    )
    access_key_secret: SecretStr | None = Field(None, description="Goes with access_key_id.")
    security_token: SecretStr | None = Field(None, description="For temporary (STS) credentials.")
    endpoint: str | None = Field(
        None, description="host:port that answers for every product, over plain HTTP. Only for an emulator."
    )
    sdk: Literal["user", "supplier"] = Field(
        "user",
        description="Which side of Compute Nest to call: `user` (what the five policies of the walkthrough "
        "grant), or `supplier` for whoever publishes the service.",
    )
    service_id: str | None = Field(
        None, description="Compute Nest service id. Unset: resolved by service_name."
    )
    service_name: str = Field("Ray社区版", description="Name of the Compute Nest service.")
    service_version: str | None = Field(None, description="Unset: the version that is online.")
    template_name: str = Field("容器集群版", description="The service's template: an ACK cluster.")
    existing_cluster_id: str | None = Field(
        None,
        pattern=r"^c[0-9a-z]+$",
        description="Install Ray on this ACK cluster instead of making one (ExistCs).",
    )
    worker_instance_type: str = Field("ecs.gn7i-c8g1.2xlarge", description="8 vCPU, 30 GiB, one NVIDIA A10.")
    worker_count: int = Field(1, ge=1, le=5000, description="Worker nodes. Each one costs.")
    worker_disk_gib: int = Field(1024, ge=20, le=2048, description="System disk of a worker, GiB.")
    worker_disk_category: Literal["cloud_essd", "cloud_ssd", "cloud_efficiency"] = Field(
        "cloud_essd", description="System disk category."
    )
    min_vcpus: int = Field(8, ge=1, description="A worker type with fewer vCPUs is refused.")
    min_memory_gib: float = Field(30.0, gt=0, description="A worker type with less memory is refused.")
    min_gpus: int = Field(1, ge=0, description="A worker type with fewer GPUs is refused.")
    min_gpu_memory_gib: float = Field(
        16.0, ge=0, description="A worker type with less GPU memory is refused."
    )
    min_disk_gib: int = Field(
        1024,
        ge=20,
        description="A smaller system disk is refused: images, model and "
        "pip environments evict pods from small disks.",
    )
    vpc_id: str | None = Field(None, description="Use this VPC. Unset: a new one.")
    vswitch_id: str | None = Field(None, description="Goes with vpc_id.")
    vpc_cidr_block: str = Field("192.168.0.0/16", description="Of a new VPC.")
    vswitch_cidr_block: str = Field("192.168.0.0/24", description="Of a new vSwitch.")
    pod_cidr: str = Field("10.0.0.0/16", description="Pod network; must not overlap the VPC.")
    service_cidr: str = Field("172.16.0.0/16", description="Service network.")
    network_plugin: Literal["flannel", "terway-eniip"] = Field("flannel", description="ACK network plugin.")
    dashboard_load_balancer: Literal["intranet", "internet"] = Field(
        "intranet",
        description="Where the service's own Ray dashboard listens. `internet` lets anybody run code on the "
        "cluster: the dashboard has no login.",
    )
    chart_values: dict[str, Any] = Field(
        default_factory=dict, description="More values for the ray-cluster Helm chart, merged over ours."
    )
    max_price_per_hour: Decimal = Field(
        Decimal("30"), gt=0, description="Refuse to buy above this hourly list price (in price_currency)."
    )
    price_currency: str = Field("CNY", description="Currency of max_price_per_hour.")
    allow_unknown_price: bool = Field(
        False, description="Go on when the price cannot be found out. Otherwise that is refused, too."
    )
    eip_bandwidth_mbps: int = Field(
        100, ge=1, le=200, description="Peak bandwidth of the public address (PayByTraffic)."
    )
    kubeconfig_minutes: int = Field(120, ge=15, le=4320, description="Lifetime of the temporary kubeconfig.")

    @property
    def control_region(self) -> str:
        """The Compute Nest region that serves `region_id` (facts: only two exist)."""
        if self.control_region_id:
            return self.control_region_id
        if self.region_id in ("cn-hangzhou", "ap-southeast-1"):
            return self.region_id
        return "cn-hangzhou" if self.region_id.startswith("cn-") else "ap-southeast-1"


class Kubeconfig(Section):
    """A cluster that someone already has (profile `kubeconfig`)."""

    path: Path | None = Field(None, description="The kubeconfig file. Required by the profile.")
    context: str | None = Field(None, description="Unset: its current-context.")
    namespace: str | None = Field(None, description="Unset: the context's namespace, else `name`.")


class Endpoint(Section):
    """How images are asked for."""

    url: str | None = Field(None, description="Base URL of the Serve endpoint. Unset: found out.")
    route: Literal["auto", "in-cluster", "load-balancer", "service-proxy"] = Field(
        "auto",
        description="auto: in-cluster DNS when inside, else the API server's service proxy; "
        "load-balancer: the serve service's own address, if it has one.",
    )


class Batch(Section):
    """Image generation."""

    concurrency: int = Field(
        64,
        ge=1,
        le=1024,
        description="The most images asked for and not yet stored. How many really are in flight follows the "
        "endpoint: as long as more make it faster, and fewer when it refuses.",
    )
    timeout_seconds: float = Field(120.0, gt=0, description="For one image, each attempt.")
    attempts: int = Field(
        4,
        ge=1,
        le=20,
        description="Attempts for one image. A full queue that says when to come back uses up none.",
    )
    deadline_seconds: float = Field(
        900.0, gt=0, description="For one image over all its attempts, from the first on."
    )
    hedge: float | None = Field(
        None,
        ge=50,
        lt=100,
        description="Percentile of the latest answers' times after which a slow image is asked for a second "
        "time; the first answer counts. 95 costs the endpoint up to one image in twenty more. Unset: never.",
    )
    verify: bool = Field(
        False,
        description="Read every finished image of a batch again and compare its SHA-256. Unset: one whose "
        "size and time (or ETag) are those on record counts as unchanged.",
    )
    max_failed_share: float = Field(
        0.0, ge=0, le=1, description="A batch with a larger share of failed images fails."
    )
    size: int | None = Field(
        None,
        ge=8,
        le=4096,
        multiple_of=8,
        description="Width and height in pixels. Unset: the endpoint's own.",
    )
    steps: int | None = Field(None, ge=1, le=1000, description="Unset: the endpoint's own.")
    guidance: float | None = Field(None, ge=0, le=100, description="Unset: the endpoint's own.")
    prompts: Path = Field(
        Path("examples/prompts.csv"),
        description="Prompt file or prompt set of jobs and schedules that name none.",
    )
    batches_per_run: int = Field(
        1,
        ge=0,
        description="Batches that a backfill gives to one run; 0: all of them to a single run.",
    )
    min_pace_share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="The check `pace` warns when a batch made fewer images/s than this share of the last "
        "batches' median.",
    )
    check_same_seed: bool = Field(
        True, description="Ask for one image of a finished batch again and compare (check `same_seed`)."
    )
    price_per_hour: Decimal | None = Field(
        None,
        ge=0,
        description="For the cost per image. Unset: the price on record of the cluster.",
    )
    engine: Literal["http", "ray"] = Field(
        "http",
        description="http: this machine asks the endpoint. ray: a Ray Job on the cluster makes the batch, "
        "and goes on without this machine; the output must be reachable from there (docs/scaling.md).",
    )
    ray_mode: Literal["serve", "actors"] = Field(
        "serve",
        description="Engine ray. serve: the warm Serve replicas paint. actors: GPU actors of the job's own, "
        "in uniform batches, on GPUs that the replicas leave free.",
    )
    ray_actors: int = Field(1, ge=1, le=10_000, description="Actors of ray_mode: actors.")
    ray_gpus: float | None = Field(
        None,
        ge=0,
        description="GPUs of one actor; may be a fraction. Unset: ray_service.gpus_per_replica (0 in the "
        "sandbox, which has none).",
    )
    ray_output: str | None = Field(
        None,
        description="Engine ray: the output folder as the Ray nodes see it, where it is mounted there. "
        "Unset: the same URL; a plain folder is refused, except in the sandbox.",
    )


class Deadlines(Section):
    """How long `ensure` and `remove` may take, in seconds."""

    cluster: float = Field(2700, gt=0, description="The cluster takes about 10 minutes.")
    public_ip: float = Field(900, gt=0, description="Binding triggers a rolling update of the API server.")
    kubeconfig: float = Field(300, gt=0, description="The credential, and the API server's answer to it.")
    ray_service: float = Field(3600, gt=0, description="The stock image alone took 14 minutes to pull.")
    remove: float = Field(2700, gt=0, description="For each link.")


class Health(Section):
    """The cluster_health sensor."""

    interval_seconds: int = Field(30, ge=10, description="Between ticks.")
    tick_seconds: float = Field(
        20, gt=0, le=50, description="Time budget of one tick; Dagster stops a sensor at 60 s."
    )
    bad_ticks: int = Field(2, ge=1, description="Bad ticks in a row before a redeploy is requested.")
    cooldown_seconds: int = Field(300, ge=0, description="Between two redeploys of the same incident.")
    max_attempts: int = Field(
        3, ge=1, description="Redeploys of one incident before raynest leaves it to a person."
    )
    settle_seconds: int = Field(
        1800, ge=0, description="So long everything must be ready for an incident to be over."
    )
    buy_cluster: bool = Field(
        False,
        description="Whether a repair may buy a new cluster when there is none, or only a failed one. "
        "Off: somebody may have deleted it to stop the bill.",
    )


class Sandbox(Section):
    """The embedded sandbox."""

    time_scale: float = Field(1.0, gt=0, description="Multiplies the sandbox's own waiting times.")
    kuberay_version: Literal["1.3.0", "1.7.0"] = Field("1.3.0", description="The release it behaves like.")
