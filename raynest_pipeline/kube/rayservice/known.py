"""Known causes of trouble: what a message of Kubernetes, Ray or the application means, and what to do.

A table of patterns, searched in order. The sources are facts: kuberay-and-serve.md, 1 and 3.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Known:
    """One line of a table."""

    pattern: re.Pattern[str]
    cause: str
    fix: str
    hopeless: bool = False
    """Waiting does not help, however long."""


def _known(pattern: str, cause: str, fix: str, *, hopeless: bool = False) -> Known:
    return Known(re.compile(pattern, re.IGNORECASE), cause, fix, hopeless)


SCHEDULING: tuple[Known, ...] = (
    _known(
        r"untolerated taint",
        "no node takes the pod: a taint is not tolerated",
        "Add the taint that the message names to ray_service.tolerations.",
    ),
    _known(
        r"insufficient nvidia\.com/gpu",
        "no node has a free GPU",
        "Add a GPU node, check that the NVIDIA device plugin runs, or set ray_service.gpus_per_replica: 0.",
    ),
    _known(
        r"insufficient (cpu|memory)",
        "no node has enough free CPU or memory",
        "Add a node, or lower ray_service.worker_cpus, worker_memory, head_cpus and head_memory.",
    ),
    _known(
        r"insufficient ephemeral-storage",
        "no node has enough free disk",
        "Use a larger system disk (alibaba.worker_disk_gib).",
    ),
    _known(
        r"node affinity|node selector",
        "no node matches the pod's node selector",
        "Label a node accordingly, or change the manifest.",
    ),
    _known(
        r"no nodes available|0/0 nodes",
        "the cluster has no nodes",
        "Add a worker node to the cluster.",
    ),
)

PULLING: tuple[Known, ...] = (
    _known(
        r"manifest unknown|not found|does not exist",
        "the image does not exist",
        "Correct ray_service.image and ray_service.ray_version.",
        hopeless=True,
    ),
    _known(
        r"unauthorized|access denied|authentication required|forbidden",
        "the registry denies access to the image",
        "Correct ray_service.image, or give the pods an imagePullSecret.",
        hopeless=True,
    ),
    _known(
        r"invalid(image)? ?name|invalid reference",
        "the image's name is not valid",
        "Correct ray_service.image.",
        hopeless=True,
    ),
    _known(
        r"no space left",
        "the node's disk is full",
        "Use a larger system disk (alibaba.worker_disk_gib): the image takes up to 30 GiB unpacked.",
        hopeless=True,
    ),
    _known(
        r"toomanyrequests|rate limit",
        "the registry limits the rate of pulls",
        "Wait, or copy the image to a registry of your own and set ray_service.image.",
    ),
    _known(
        r"",
        "the node cannot pull the image",
        "Check the worker nodes' way out (SNAT). From mainland China copy the image to ACR and set "
        "ray_service.image.",
    ),
)

CREATING: tuple[Known, ...] = (
    _known(
        r"exceeded quota",
        "the namespace's resource quota is used up",
        "Raise the ResourceQuota, or ask for less.",
    ),
    _known(
        r"forbidden",
        "the cluster refuses the pods",
        "See which admission policy refuses them (the message names it).",
    ),
    _known(r"", "the operator cannot create pods", "See the message."),
)

APPLICATION: tuple[Known, ...] = (
    _known(
        r"gated repo|GatedRepoError",
        "the model asks for a licence to be accepted",
        "Accept it on its page and give HF_TOKEN in ray_service.env, or use another model.",
    ),
    _known(
        r"couldn't connect to|LocalEntryNotFoundError|huggingface\.co.*(max retries|timed out|unreachable)",
        "the model cannot be downloaded: its hub is not reachable from the nodes",
        "Set ray_service.hf_endpoint to a mirror, check the nodes' way out (SNAT), or put the model into "
        "the image.",
    ),
    _known(
        r"ModelUnavailable.*(it takes .* free|cache .* cannot be written)",
        "there is no room for the model on the worker's disk",
        "Take a larger disk (alibaba.worker_disk_gib), or a volume for the models (ray_service.cache_claim).",
    ),
    _known(
        r"ModelUnavailable.*needs the package",
        "the replicas lack the package that opens the model's object store",
        "Add it to ray_service.pip_packages, or to the image.",
    ),
    _known(
        r"repository not found|RepositoryNotFoundError|ModelUnavailable",
        "the model does not exist, or is not public",
        "Set ray_service.model to one that exists. (stabilityai/stable-diffusion-2 was deleted in 2025.)",
    ),
    _known(
        r"working_dir.*(fail|error|download)|failed to download.*(working_dir|zip|https?://)|download_and_unpack",
        "the code archive (working_dir) cannot be downloaded",
        "Use ray_service.code: configmap or image; github.com may be blocked from where the nodes are.",
    ),
    _known(
        r"no matching distribution|resolutionimpossible|could not find a version",
        "pip finds no such package",
        "Correct ray_service.pip_packages or pip_index_url, or use an image that has them.",
    ),
    _known(
        r"pip install|failed to install pip|runtime_env.*pip|subprocess.*pip",
        "the replicas' pip environment cannot be installed",
        "Set ray_service.pip_index_url to a reachable index, or build the packages into the image.",
    ),
    _known(
        r"no space left on device",
        "the node's disk is full",
        "Use a larger system disk (alibaba.worker_disk_gib).",
    ),
    _known(
        r"cuda out of memory|OutOfMemoryError.*CUDA",
        "the GPU's memory does not suffice",
        "Lower ray_service.max_batch_size, or use a larger GPU.",
    ),
    _known(
        r"no cuda gpus|nvidia driver|cuda.*not available|found no nvidia",
        "the container sees no GPU",
        "Check the NVIDIA driver and device plugin on the node, and that the image is a CUDA one.",
    ),
    _known(
        r"ModuleNotFoundError|ImportError|No module named",
        "the application lacks a Python module",
        "Add its package to ray_service.pip_packages, or use an image that has it.",
    ),
    _known(
        r"out of memory|OutOfMemoryError|OOM",
        "the replica ran out of memory",
        "Raise ray_service.worker_memory.",
    ),
    _known(
        r"taken more than \d+s to be scheduled",
        "a replica waits for resources, or for its environment to be installed",
        "If it lasts: compare what the replica needs with what Ray has, as the message says.",
    ),
    _known(
        r"taken more than \d+s to initialize",
        "a replica is still loading its model",
        "Wait: a download of several GiB takes minutes.",
    ),
)


def match(table: tuple[Known, ...], message: str) -> Known | None:
    """The first line of a table that fits."""
    return next((known for known in table if known.pattern.search(message)), None)
