"""The chain as a whole: its links in order, and what is done with all of them."""

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

from raynest_pipeline.alibaba.cloud import Cloud
from raynest_pipeline.chain.cluster import ClusterLink
from raynest_pipeline.chain.endpoint import EndpointFinder, Route
from raynest_pipeline.chain.intent import is_wanted, state_dir, want
from raynest_pipeline.chain.journal import Journal
from raynest_pipeline.chain.kubeconfig import KubeAccess, KubeconfigLink, given_kubeconfig
from raynest_pipeline.chain.link import UNSEEN, Change, Link, Observation, OnStep, Step, silent
from raynest_pipeline.chain.lock import chain_lock
from raynest_pipeline.chain.parameters import owner_tags
from raynest_pipeline.chain.preflight import Report, run_preflight
from raynest_pipeline.chain.public_ip import PublicIpLink
from raynest_pipeline.chain.ray_service import RayServiceLink
from raynest_pipeline.chain.taken_up import ray_token
from raynest_pipeline.errors import AccessError, RaynestError, RefusedError
from raynest_pipeline.kube.client import RAY_SERVICE
from raynest_pipeline.kube.rayservice import serve
from raynest_pipeline.settings import Profile, Settings
from raynest_pipeline.waiting import Clock, Deadline, SystemClock

T = TypeVar("T")

_CLOCK_SLACK = timedelta(minutes=1)
"""A credential may have expired by the server's clock and not yet by ours."""

_GOES_WITH_CLUSTER = {RayServiceLink.name: 180.0, PublicIpLink.name: 600.0}
"""Links that a teardown doesn't insist on while the cluster stands and costs, and how long it tries (s)."""


@dataclass(frozen=True)
class Teardown:
    """What a teardown did, and what its audit found left over."""

    changes: tuple[Change, ...]
    left: tuple[str, ...] = ()
    """Resources that still carry our tag, or that the cluster made: they may cost money."""


@dataclass(frozen=True)
class Chain:
    """The links of one profile, wired. Building one contacts nothing."""

    settings: Settings
    links: Sequence[Link]
    ray_service: RayServiceLink
    kube: KubeAccess
    kubeconfig_path: Path
    endpoints: EndpointFinder
    clock: Clock
    credential_expires: Callable[[], datetime | None]
    """When the fetched kubeconfig's credential ends; None for one that raynest doesn't renew."""
    cloud: Cloud | None = field(default=None, repr=False)

    def link(self, name: str) -> Link:
        """The link called `name`.

        Raises:
            KeyError: This profile's chain has no such link.
        """
        return {link.name: link for link in self.links}[name]

    def preflight(self) -> Report | None:
        """Everything to know before buying; None when this profile buys nothing."""
        return run_preflight(self.settings, self.cloud) if self.cloud else None

    def observe(self) -> list[Observation]:
        """All links, in order."""
        return [link.observe() for link in self.links]

    def plan(self) -> list[Change]:
        """What `ensure` would change, link by link. What hangs on something missing is planned as new.

        Raises:
            AccessError: There are no credentials.
        """
        changes: list[Change] = []
        for link in self.links:
            try:
                changes += link.plan()
            except AccessError:
                raise
            except RaynestError as error:
                changes.append(Change(link.name, UNSEEN, "cannot be planned", f"{error.what} {error.why}"))
        return changes

    def deadline(self, link: str) -> Deadline:
        """How long this link may take, from now."""
        return Deadline.after(getattr(self.settings.deadlines, link), self.clock)

    def ensure(self, name: str, on_step: OnStep = silent, *, repair: bool = False) -> Observation:
        """Make one link ready; the ones before it must be.

        Args:
            name: The link.
            on_step: Hears of progress.
            repair: Nobody asked for it but the sensor. Then the chain must still be wanted, and a cluster is
                bought only with `health.buy_cluster`. Otherwise the wish to have it up goes on record.

        Raises:
            RefusedError: A repair of what was taken down meanwhile, or one that would have to buy.
            RaynestError: As `Link.ensure`.
        """
        with self.writing():
            if repair and not self.wanted:
                raise RefusedError(
                    "The chain is not repaired: it was taken down meanwhile.", fix="Run `raynest up`."
                )
            if not repair:
                want(self.settings, True)
            link, deadline = self.link(name), self.deadline(name)
            if isinstance(link, ClusterLink):
                may_buy = not repair or self.settings.health.buy_cluster
                return link.ensure(deadline, on_step, may_buy=may_buy)
            return link.ensure(deadline, on_step)

    def teardown(self, on_step: OnStep = silent) -> Teardown:
        """Remove all links, last one first, and audit what is left.

        Whatever sticks, the cluster goes, which costs the most: what is inside it goes with it, and an
        address that could not be taken off it is tried again afterwards.

        Raises:
            RaynestError: What could not be removed.
        """
        changes: list[Change] = []
        again: list[Link] = []
        with self.writing():
            want(self.settings, False)
            for link in reversed(self.links):
                try:
                    changes += link.remove(self._remove_deadline(link), on_step)
                except RaynestError as error:
                    if self.cloud is None or link.name not in _GOES_WITH_CLUSTER:
                        raise
                    said = f"left until the cluster is deleted: {error.what} {error.why}".rstrip()
                    on_step(Step(link.name, said))
                    again += [link] if link.name == PublicIpLink.name else []
            for link in again:
                changes += link.remove(self._remove_deadline(link), on_step)
        left = tuple(f"{change.what} ({change.why})" for change in changes if change.action == "left")
        return Teardown(tuple(c for c in changes if c.action != "left"), (*self.audit(), *left))

    def _remove_deadline(self, link: Link) -> Deadline:
        whole = Deadline.after(self.settings.deadlines.remove, self.clock)
        most = _GOES_WITH_CLUSTER.get(link.name) if self.cloud is not None else None
        return whole if most is None else whole.at_most(most)

    def audit(self) -> tuple[str, ...]:
        """What in the cloud still carries our tag.

        Raises:
            CloudError: The cloud could not be asked.
        """
        if self.cloud is None:
            return ()
        name = self.settings.name
        instances = self.cloud.instances.find_instances(name)
        eips = self.cloud.network.find_eips(owner_tags(name))
        tags = owner_tags(name).items()
        ours = [f"service instance {i.id} ({i.status})" for i in instances if tags <= i.tags.items()]
        return (*ours, *(f"EIP {eip.ip} ({eip.id}, {eip.status})" for eip in eips))

    # -- the endpoint ----------------------------------------------------------------------------

    @contextmanager
    def endpoint(self) -> Iterator[Route]:
        """The road to the Serve endpoint, open while the context lasts.

        Raises:
            NotReadyError: The chain isn't up.
        """
        with self.kube() as client:
            yield self.endpoints.find(client, self.ray_service.namespace, self.ray_service.service_name)

    def through_endpoint(self, work: Callable[[Route], T]) -> T:
        """Run long, resumable work on the endpoint; again with a new credential when one expires under it.

        Raises:
            NotReadyError: The chain isn't up.
            AccessError: The credential is refused before its time.
        """
        return self._through(self.endpoint, work)

    def through_dashboard(self, work: Callable[[Route], T]) -> T:
        """As `through_endpoint`, with the road to the Ray dashboard; again also with another token of Ray's.

        A cluster that replaces another under the work has a token of its own.
        """
        tried: list[str | None] = []

        def noted(route: Route) -> T:
            tried.append(route.target.headers.get(serve.RAY_TOKEN_HEADER))
            return work(route)

        while True:
            try:
                return self._through(self.dashboard, noted)
            except AccessError:
                with self.dashboard() as route:
                    if route.target.headers.get(serve.RAY_TOKEN_HEADER) in tried:
                        raise

    def _through(self, road: Callable[[], AbstractContextManager[Route]], work: Callable[[Route], T]) -> T:
        while True:
            expires = self.credential_expires()
            with road() as route:
                try:
                    return work(route)
                except AccessError:
                    if expires is None or expires > self.clock.now() + _CLOCK_SLACK:
                        raise

    @contextmanager
    def dashboard(self) -> Iterator[Route]:
        """The road to the Ray dashboard, with Ray's own token where it wants one."""
        with self.kube() as client:
            namespace, name = self.ray_service.namespace, self.ray_service.service_name
            route = self.endpoints.dashboard(client, namespace, name)
            token = ray_token(client, client.get(RAY_SERVICE, name, namespace) or {})
            headers = {serve.RAY_TOKEN_HEADER: f"Bearer {token}"} if token else {}
            yield replace(route, target=route.target.with_headers(headers))

    # -- intent and exclusion --------------------------------------------------------------------

    def writing(self) -> AbstractContextManager[None]:
        """Hold the chain's lock."""
        return chain_lock(self.settings.home_dir / "chain.lock", self.clock)

    @property
    def wanted(self) -> bool:
        """Whether the chain should be up."""
        return is_wanted(self.settings)


def build_chain(settings: Settings, clock: Clock | None = None, *, patience_seconds: float = 60.0) -> Chain:
    """The chain of the settings' profile.

    Raises:
        AccessError: No cloud credentials.
        InputError: The given kubeconfig cannot be used.
    """
    # Whole, before the links' threads: two that import parts of it at once find it half initialized.
    importlib.import_module("kubernetes")
    clock = clock or SystemClock()
    endpoints = EndpointFinder(settings)
    if settings.profile is Profile.KUBECONFIG:
        path, kube, namespace = given_kubeconfig(settings)
        ray_service = RayServiceLink(settings, kube, namespace, endpoints)
        return Chain(settings, [ray_service], ray_service, kube, path, endpoints, clock, lambda: None)
    cloud = Cloud.from_settings(settings, clock, patience_seconds=patience_seconds)
    journal = Journal(state_dir(settings) / "journal.json")
    cluster = ClusterLink(settings, cloud, journal)
    public_ip = PublicIpLink(settings, cloud, journal, cluster)
    kubeconfig = KubeconfigLink(settings, cloud, public_ip, clock)
    ray_service = RayServiceLink(settings, kubeconfig.client, settings.name, endpoints)
    return Chain(
        settings,
        [cluster, public_ip, kubeconfig, ray_service],
        ray_service,
        kubeconfig.client,
        kubeconfig.path,
        endpoints,
        clock,
        kubeconfig.expires,
        cloud,
    )
