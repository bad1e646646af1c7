"""raynest's errors to Dagster's: the same words, without a traceback that hides them."""

import contextlib
from collections.abc import Iterator

import dagster as dg

from raynest_pipeline.defs.progress import tell
from raynest_pipeline.errors import RaynestError, RemoteError, Verdict


@contextlib.contextmanager
def as_failure() -> Iterator[None]:
    """Turn a `RaynestError` into a `dagster.Failure` with its what, why and fix.

    Only what may succeed unchanged may be retried: a purchase that was refused is refused again.
    """
    try:
        yield
    except RaynestError as error:
        tell(error)
        retry = isinstance(error, RemoteError) and error.verdict in (Verdict.RETRYABLE, Verdict.UNKNOWN)
        raise dg.Failure(
            description=str(error),
            metadata={
                key: text
                for key, text in (("what", error.what), ("why", error.why), ("what to do", error.fix))
                if text
            },
            allow_retries=retry,
        ) from error
