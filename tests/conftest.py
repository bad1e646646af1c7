"""What every test needs: no stray credentials, proxies or settings; a real cluster only when one is given."""

import os
import signal
from collections.abc import Iterator

import pytest

# The SDK reads these when it is imported, so they are set before any test module is.
os.environ["ALIBABA_CLOUD_ECS_METADATA_DISABLED"] = "true"
for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "DAGSTER_HOME", "RAYNEST_SETTINGS"):
    os.environ.pop(name, None)
for name in [name for name in os.environ if name.startswith("RAYNEST_")]:
    os.environ.pop(name)

# In the background of a shell SIGINT is ignored, and that is inherited: then no test could be interrupted.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """`pytest -m cluster --kubeconfig FILE`: tests against a real cluster that has KubeRay."""
    parser.addoption("--kubeconfig", default=None, help="kubeconfig of a real cluster with KubeRay")


@pytest.fixture(autouse=True)
def _own_environment() -> Iterator[None]:
    """What a test does to the environment ends with it."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
