"""What several tests of the Serve application need; makes what lies beside them importable, too."""

import os
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))


@dataclass(frozen=True)
class Parts:
    """A multipart answer taken apart: parts by item, in the order in which they came."""

    parts: dict[int, tuple[dict[str, str], bytes]] = field(default_factory=dict)
    """X-Raynest-Index -> headers in small letters, body."""
    complete: bool = False
    """The closing boundary came."""

    @property
    def statuses(self) -> dict[int, int]:
        return {index: int(headers["x-raynest-status"]) for index, (headers, _) in self.parts.items()}


def take_apart(content_type: str, body: bytes) -> Parts:
    """Strictly by RFC 2046 and each part's Content-Length; what is cut off is left out."""
    kind, _, parameter = content_type.partition("; boundary=")
    assert kind == "multipart/mixed"
    delimiter = f"--{parameter}".encode()
    parts: dict[int, tuple[dict[str, str], bytes]] = {}
    rest = body
    while rest.startswith(delimiter + b"\r\n"):
        head, found, after = rest.removeprefix(delimiter + b"\r\n").partition(b"\r\n\r\n")
        if not found:
            return Parts(parts)
        headers = {
            name.lower(): value
            for name, _, value in (line.partition(": ") for line in head.decode("latin-1").split("\r\n"))
        }
        length = int(headers["content-length"])
        content, rest = after[:length], after[length:]
        if len(content) < length or not rest.startswith(b"\r\n"):
            return Parts(parts)
        rest = rest.removeprefix(b"\r\n")
        index = int(headers["x-raynest-index"])
        assert index not in parts
        parts[index] = headers, content
    return Parts(parts, complete=rest == delimiter + b"--\r\n")


@pytest.fixture
def read_parts() -> Callable[[str, bytes], Parts]:
    """(Content-Type, body) -> Parts."""
    return take_apart


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A Ray of our own with Serve on a free port."""
    import ray
    from ray import serve

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        chosen = int(probe.getsockname()[1])
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
    )
    serve.start(http_options={"host": "127.0.0.1", "port": chosen})
    yield chosen
    serve.shutdown()
    ray.shutdown()
