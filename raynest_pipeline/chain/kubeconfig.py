"""The third link: a temporary credential for the cluster, in a private file.

The user's own ~/.kube/config is never read or written.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

from raynest_pipeline.alibaba.cloud import Cloud
from raynest_pipeline.chain.intent import state_dir
from raynest_pipeline.chain.link import REUSED, UNSEEN, Change, Observation, OnStep, State, Step, silent
from raynest_pipeline.chain.public_ip import PublicIpLink
from raynest_pipeline.errors import InputError, NotReadyError, RefusedError, RemoteError
from raynest_pipeline.files import private_dir, write_atomic
from raynest_pipeline.kube import kubeconfig as file_format
from raynest_pipeline.kube.client import POD, KubeClient
from raynest_pipeline.settings import Settings
from raynest_pipeline.waiting import Backoff, Clock, Deadline, Done, Waiting, wait_for

_POLL = Backoff(first=0.5, factor=1.5, most=8.0)
_RENEW_SHARE = 0.25
"""A credential is renewed when less than this share of its lifetime is left."""


def kubeconfig_path(settings: Settings) -> Path:
    """Where the fetched kubeconfig lies."""
    return state_dir(settings) / "kubeconfig.yaml"


class KubeconfigLink:
    """Fetches, verifies, renews and deletes the kubeconfig file."""

    name = "kubeconfig"

    def __init__(self, settings: Settings, cloud: Cloud, public_ip: PublicIpLink, clock: Clock) -> None:
        self._settings = settings
        self._cloud = cloud
        self._public_ip = public_ip
        self._clock = clock
        self.path = kubeconfig_path(settings)

    # -- observe ---------------------------------------------------------------------------------

    def observe(self) -> Observation:
        text = self._read()
        if text is None:
            return Observation(self.name, State.MISSING, "no kubeconfig has been fetched")
        try:
            server, expires = file_format.server_of(text), file_format.expires_at(text)
        except InputError as error:
            return Observation(self.name, State.BROKEN, f"{self.path} is damaged: {error.what}")
        facts = {"path": str(self.path), "server": server, "namespace": self._settings.name}
        if expires is not None:
            facts["expires"] = expires.isoformat(timespec="seconds")
            if expires <= self._clock.now():
                return Observation(self.name, State.BROKEN, "its credential has expired", facts)
        return self._verify(server, facts)

    def _verify(self, server: str, facts: dict[str, str]) -> Observation:
        try:
            endpoint = self._public_ip.endpoint()
            if endpoint and endpoint != server:
                cause = f"it points at {server}, the API server is at {endpoint} now"
                return Observation(self.name, State.BROKEN, cause, facts)
            with KubeClient.from_file(self.path) as client:
                facts["kubernetes_version"] = client.server_version()
                # The version is open to anybody; the namespace shows that the credential works.
                client.list(POD, self._settings.name)
        except InputError as error:
            return Observation(self.name, State.BROKEN, f"{self.path} is damaged: {error.what}", facts)
        except RemoteError as error:
            if error.status == 401:
                return Observation(self.name, State.BROKEN, "its credential is not accepted any more", facts)
            return Observation(self.name, State.UNKNOWN, f"{error.what} {error.why}".strip(), facts)
        except RefusedError as error:
            return Observation(self.name, State.UNKNOWN, str(error), facts)
        return Observation(self.name, State.READY, "", facts)

    def _read(self) -> str | None:
        try:
            return self.path.read_text(encoding="utf-8")
        except (FileNotFoundError, UnicodeDecodeError):
            return None

    # -- plan and ensure -------------------------------------------------------------------------

    def plan(self) -> list[Change]:
        seen = self.observe()
        if seen.ready:
            return [Change(self.name, "none", f"{self.path} works")]
        if seen.state is State.UNKNOWN:
            return [Change(self.name, UNSEEN, "could not be looked at", seen.cause)]
        minutes = self._settings.alibaba.kubeconfig_minutes
        return [
            Change(
                self.name, "create", f"fetch a credential for {minutes} minutes to {self.path}", seen.cause
            )
        ]

    def ensure(self, deadline: Deadline, on_step: OnStep = silent) -> Observation:
        seen = self.observe()
        if seen.ready and not self._due():
            on_step(Step(self.name, REUSED))
            return seen
        self._fetch(deadline, on_step)

        def probe() -> Done[Observation] | Waiting:
            now = self.observe()
            if now.ready:
                return Done(now)
            # Right after binding the API server restarts, and its certificate lags behind the address.
            return Waiting(now.cause)

        return wait_for(
            probe,
            what="A working kubeconfig",
            deadline=deadline,
            backoff=_POLL,
            on_progress=lambda w: on_step(Step(self.name, w.cause)),
        )

    def _fetch(self, deadline: Deadline, on_step: OnStep) -> None:
        def probe() -> Done[str] | Waiting:
            cluster = self._public_ip.find().cluster
            if cluster is None:
                raise NotReadyError(
                    "There is no cluster to fetch a kubeconfig from.",
                    fix="Materialize `cluster` first (`raynest up`).",
                )
            if not cluster.api_server_endpoint:
                raise NotReadyError(
                    "The API server has no public address, so a kubeconfig would lead nowhere.",
                    fix="Materialize `public_ip` first (`raynest up`).",
                )
            return Done(cluster.id)

        cluster_id = wait_for(probe, what="The cluster", deadline=deadline, backoff=_POLL)
        minutes = self._settings.alibaba.kubeconfig_minutes
        on_step(Step(self.name, f"fetching a credential for {minutes} minutes"))
        fetched = self._cloud.clusters.kubeconfig(cluster_id, minutes)
        text = file_format.with_namespace(
            fetched.text.get_secret_value(), self._settings.name, self._settings.name
        )
        private_dir(self.path.parent)
        write_atomic(self.path, text)

    def _due(self) -> bool:
        """Whether little of the credential's lifetime is left."""
        expires = self.expires()
        if expires is None:
            return False
        lifetime = timedelta(minutes=self._settings.alibaba.kubeconfig_minutes)
        return expires - self._clock.now() < lifetime * _RENEW_SHARE

    def expires(self) -> datetime | None:
        """When the fetched credential ends, UTC; None when there is none, or it doesn't say."""
        text = self._read()
        try:
            return file_format.expires_at(text) if text else None
        except InputError:
            return None

    def client(self) -> KubeClient:
        """A client with a credential that still lasts a while; renewed first when it is due.

        Raises:
            NotReadyError: There is no kubeconfig.
            RemoteError: It cannot be renewed.
        """
        if self._read() is None:
            raise NotReadyError(
                "There is no kubeconfig.", fix="Materialize `kubeconfig` first (`raynest up`)."
            )
        if self._due():
            self._fetch(Deadline.after(self._settings.deadlines.kubeconfig, self._clock), silent)
        return KubeClient.from_file(self.path)

    # -- remove ----------------------------------------------------------------------------------

    def remove(self, deadline: Deadline, on_step: OnStep = silent) -> list[Change]:
        if not self.path.is_file():
            return []
        self.path.unlink()
        on_step(Step(self.name, f"deleted {self.path}"))
        return [Change(self.name, "delete", str(self.path))]


KubeAccess = Callable[[], KubeClient]
"""How the ray_service link gets a client; the caller closes it."""


def given_kubeconfig(settings: Settings) -> tuple[Path, KubeAccess, str]:
    """Profile `kubeconfig`: the file, a client maker, and the namespace to work in.

    Raises:
        InputError: The file is missing or wrong.
    """
    given = settings.kubeconfig
    path = (given.path or Path()).expanduser().absolute()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"The kubeconfig {path} cannot be read.", why=str(error), fix="Correct kubeconfig.path."
        ) from None
    namespace = given.namespace or file_format.namespace_of(text, given.context) or settings.name
    return path, lambda: KubeClient.from_file(path, given.context), namespace
