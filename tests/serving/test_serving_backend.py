"""What Ray says of a model replica, and what the HTTP face makes of it, without a cluster."""

import asyncio
from typing import Any

import pytest
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    ObjectLostError,
    OwnerDiedError,
    RayTaskError,
)
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle

from raynest_pipeline.serving.app import HandleBackend, build
from raynest_pipeline.serving.contract import (
    ImageRequest,
    PainterBusy,
    PainterUnavailable,
    PaintingFailed,
)
from raynest_pipeline.serving.options import ServingOptions


class Response:
    """A Serve response that ends with an outcome, or never."""

    def __init__(self, outcome: object) -> None:
        self._outcome = outcome
        self.cancelled = 0

    def __await__(self) -> Any:
        if self._outcome is None:
            yield from asyncio.Event().wait().__await__()
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        return self._outcome

    def cancel(self) -> None:
        self.cancelled += 1


class Handle(DeploymentHandle):  # type: ignore[misc]
    """A Serve handle whose methods all answer alike."""

    def __init__(self, response: Response) -> None:
        self.response = response

    def __getattr__(self, name: str) -> Any:
        assert name in ("paint", "facts")
        return self

    def remote(self, *_args: object, **_more: object) -> Any:
        return self.response


def backend(outcome: object) -> tuple[HandleBackend, Response]:
    response = Response(outcome)
    return HandleBackend(Handle(response)), response


def task_error(cause: Exception) -> RayTaskError:
    return RayTaskError("paint", "traceback", cause).as_instanceof_cause()


OUTCOMES: list[tuple[Any, type[Exception], str]] = [
    (PainterBusy("3 wait"), PainterBusy, "3 wait"),
    (TimeoutError("in the queue"), TimeoutError, "in the queue"),
    (PaintingFailed("ValueError: x"), PaintingFailed, "ValueError: x"),
    (DeploymentUnavailableError.__new__(DeploymentUnavailableError), PainterUnavailable, "deployment failed"),
    (ActorDiedError(), PainterUnavailable, "the model replica died: ActorDiedError"),
    (ActorUnavailableError("gone", b"1" * 16), PainterUnavailable, "died: ActorUnavailableError"),
    (ObjectLostError("00" * 28, None, "stack"), PainterUnavailable, "died: ObjectLostError"),
    (OwnerDiedError("00" * 28, None, "stack"), PainterUnavailable, "died: OwnerDiedError"),
    (RayServeException("upstream"), PainterUnavailable, "died: RayServeException"),
    (task_error(KeyError("surprise")), PaintingFailed, "KeyError: 'surprise'"),
    (task_error(MemoryError()), PaintingFailed, "MemoryError"),
]


@pytest.mark.parametrize(("outcome", "kind", "told"), OUTCOMES, ids=lambda value: type(value).__name__)
def test_each_end_of_a_call_is_one_of_the_contract_s(outcome: Any, kind: type[Exception], told: str) -> None:
    """An image that got lost with its replica's node is asked for again (503), and is no riddle (500)."""
    painter, response = backend(outcome)
    with pytest.raises(kind) as caught:
        asyncio.run(painter.paint(ImageRequest("x", 0)))
    assert type(caught.value) is kind
    assert told in str(caught.value)
    assert response.cancelled == 1


def test_back_pressure_is_a_full_queue() -> None:
    error = BackPressureError(num_queued_requests=3, max_queued_requests=2)
    painter, _ = backend(error)
    with pytest.raises(PainterBusy, match="the queue is full"):
        asyncio.run(painter.facts())


def test_who_gives_up_takes_the_request_out_of_the_queue() -> None:
    painter, response = backend(None)

    async def give_up() -> None:
        async with asyncio.timeout(0.01):
            await painter.paint(ImageRequest("x", 0))

    with pytest.raises(TimeoutError):
        asyncio.run(give_up())
    assert response.cancelled == 1


def test_the_face_takes_more_than_it_lets_wait() -> None:
    """Else its own 503 would wait in Serve's proxy, behind those that it is to refuse."""
    application = build({"max_batch_size": 2, "queue_size": 3, "replicas": 4})
    ingress = application._bound_deployment
    most = ServingOptions(max_batch_size=2, queue_size=3, replicas=4).most_in_work
    assert most == 2 * 4 * 5
    assert ingress.max_ongoing_requests > most
