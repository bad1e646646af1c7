"""Looking at all links within a time budget."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

from raynest_pipeline.chain.link import Link, Observation, State
from raynest_pipeline.errors import RaynestError


def observe_within(links: Sequence[Link], seconds: float) -> list[Observation]:
    """Observe the links side by side; one that does not answer in time is `UNKNOWN`.

    Args:
        links: In chain order, which is the order of the answer.
        seconds: The budget. A thread that is late ends by its own connection timeout.
    """
    # No context manager: leaving one would wait for the late ones.
    pool = ThreadPoolExecutor(max_workers=len(links), thread_name_prefix="observe")
    futures = [pool.submit(link.observe) for link in links]
    wait(futures, timeout=seconds)
    pool.shutdown(wait=False, cancel_futures=True)
    return [_answer(link, future, seconds) for link, future in zip(links, futures, strict=True)]


def _answer(link: Link, future: "Future[Observation]", seconds: float) -> Observation:
    if not future.done():
        return Observation(link.name, State.UNKNOWN, f"no answer within {seconds:.0f} s")
    try:
        return future.result()
    except RaynestError as error:
        # No credentials, a damaged file: one link that cannot be looked at doesn't hide the others.
        return Observation(link.name, State.UNKNOWN, f"{error.what} {error.why}".strip())
