"""Tells an endpoint that is gone from a prompt that fails.

While the endpoint is gone, images wait and no attempt of theirs is used up; when it stays gone, the
batch ends, to be resumed. A failure that only concerns its prompt goes back to the prompt.
"""

import asyncio

from raynest_pipeline.errors import AccessError, RemoteError, UnreachableError, Verdict
from raynest_pipeline.images.client import Client
from raynest_pipeline.waiting import Backoff, Clock

ENDPOINT_STATUSES = frozenset({404, 502, 503, 504})
"""Answers that may come from whatever stands before an application that is gone."""


def may_be_outage(error: RemoteError) -> bool:
    """Whether the failure could mean that the endpoint, not the prompt, is in trouble."""
    if error.status is not None:
        return error.status in ENDPOINT_STATUSES
    return True


def ends_batch(error: RemoteError, url: str) -> AccessError | UnreachableError | None:
    """The error with which the whole batch must end, since no other image would fare better."""
    if error.status in (401, 403):
        return AccessError(
            f"The endpoint {url} refuses access ({error.status}).",
            why=error.why,
            fix="Renew the kubeconfig or the token, then run again: finished images are kept.",
        )
    if error.status is None and error.verdict is Verdict.PERMANENT:
        return UnreachableError(
            f"The endpoint {url} cannot be used.", why=f"{error.what} {error.why}", fix="Check the address."
        )
    return None


class Outage:
    """Watches one endpoint for the workers of a batch."""

    def __init__(self, client: Client, url: str, *, clock: Clock, limit: float, backoff: Backoff) -> None:
        """
        Args:
            client: Asks the endpoint for its description, which costs it no image.
            url: For messages.
            limit: Seconds an outage may last.
            backoff: Pauses between two looks.
        """
        self._client = client
        self._url = url
        self._clock = clock
        self._limit = limit
        self._backoff = backoff
        self._lock = asyncio.Lock()
        self._documented = True
        self._last_outage = (-1.0, -1.0)
        self._seen_well = -1.0
        self.cause = ""
        """Why the endpoint is being waited for; "" while it answers."""

    def expect(self, *, documented: bool) -> None:
        """What the endpoint's description was at the start: a 404 then means it has gone since."""
        self._documented = documented

    async def endured(self, error: RemoteError) -> bool:
        """After a failure: whether it was an outage, which is over by now.

        Raises:
            UnreachableError: It has lasted `limit` seconds.
            AccessError: The credentials are no longer accepted.
        """
        failed_at = self._clock.monotonic()
        async with self._lock:
            # Many workers fail at once, and one look answers for all of them.
            if self._last_outage[0] <= failed_at <= self._last_outage[1]:
                return True
            if failed_at <= self._seen_well:
                return False
            looks = 0
            try:
                while (trouble := await self._look()) is not None:
                    self.cause = trouble.why or trouble.what
                    if self._clock.monotonic() - failed_at >= self._limit:
                        raise UnreachableError(
                            f"The endpoint {self._url} has not answered for {self._limit:.0f} s.",
                            why=f"{error.what} {error.why} Last: {trouble.what} {trouble.why}",
                            fix="See `raynest status`; then run the same batch again: "
                            "it makes only the missing images.",
                        )
                    await asyncio.sleep(self._backoff.pause(looks))
                    looks += 1
            finally:
                self.cause = ""
            self._seen_well = self._clock.monotonic()
            if looks:
                self._last_outage = (failed_at, self._seen_well)
            return looks > 0

    async def _look(self) -> RemoteError | None:
        """What is wrong with the endpoint as such; None when nothing is."""
        try:
            offer = await self._client.describe()
        except RemoteError as error:
            if (end := ends_batch(error, self._url)) is not None:
                raise end from None
            return error
        if self._documented and not offer.documented:
            return RemoteError(f"{self._url} has no application now.", verdict=Verdict.RETRYABLE, status=404)
        return None
