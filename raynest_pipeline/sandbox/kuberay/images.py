"""Pulling images: nothing is pulled, but it takes its time, is reported, and can fail."""

from __future__ import annotations

import time
from typing import Any

from raynest_pipeline.sandbox.faults import Faults
from raynest_pipeline.sandbox.kube.store import Object, Store
from raynest_pipeline.sandbox.kuberay import objects, pod_status
from raynest_pipeline.sandbox.kuberay.pod_run import PodRun, Timing


class Images:
    """The images that are on the nodes."""

    def __init__(self, store: Store, faults: Faults, timing: Timing) -> None:
        self._store = store
        self._faults = faults
        self._timing = timing
        self._present: set[tuple[str, str]] = set()

    def have(self, pod: Object) -> None:
        """A pod's image is on its node."""
        self._present.add(_key(pod))

    def pull(self, pod: Object, run: PodRun) -> dict[str, Any] | None:
        """One step towards a pod's image: the container's waiting state, or None when it is there."""
        if run.pulled:
            return None
        image, clock = _key(pod)[1], time.monotonic()
        if self._faults.active("image_pull_error") is not None:
            # The registry being gone means little while nodes keep what they have: they forget it.
            self._present.discard(_key(pod))
            return self._fail(pod, run, image, clock)
        if _key(pod) in self._present and run.pull_until is None:
            self._event(pod, "Pulled", f'Container image "{image}" already present on machine')
        elif run.pull_until is None or run.pull_failures:
            self._event(pod, "Pulling", f'Pulling image "{image}"')
            run.pull_until, run.pull_failures = clock + self._timing.pull, 0
            return pod_status.waiting("ContainerCreating")
        elif clock < run.pull_until:
            return pod_status.waiting("ContainerCreating")
        else:
            took = f"{self._timing.pull:g}s"
            message = f'Successfully pulled image "{image}" in {took} ({took} including waiting)'
            self._event(pod, "Pulled", message)
            self.have(pod)
        run.pulled = True
        return None

    def _fail(self, pod: Object, run: PodRun, image: str, clock: float) -> dict[str, Any]:
        if run.pull_failures and run.pull_until is not None and clock < run.pull_until:
            message = f'Back-off pulling image "{image}"'
            if run.pull_failures == 1:
                self._event(pod, "BackOff", message)
                self._event(pod, "Failed", "Error: ImagePullBackOff", "Warning")
            run.pull_failures += 1
            return pod_status.waiting("ImagePullBackOff", message)
        run.pull_failures, run.pull_until = 1, clock + self._timing.pull_retry
        host = image.split("/")[0]
        registry = host if "." in host else "registry-1.docker.io"
        message = (
            f'failed to pull and unpack image "{image}": failed to resolve reference "{image}": '
            f'failed to do request: Head "https://{registry}/v2/": dial tcp: i/o timeout'
        )
        self._event(pod, "Pulling", f'Pulling image "{image}"')
        self._event(pod, "Failed", f'Failed to pull image "{image}": {message}', "Warning")
        self._event(pod, "Failed", "Error: ErrImagePull", "Warning")
        return pod_status.waiting("ErrImagePull", message)

    def _event(self, pod: Object, reason: str, message: str, kind: str = "Normal") -> None:
        objects.event(self._store, pod, reason, message, kind, component=objects.KUBELET)


def _key(pod: Object) -> tuple[str, str]:
    return str(pod["spec"]["nodeName"]), str(pod["spec"]["containers"][0].get("image", ""))
