"""`raynest open`: a loopback address in front of the API server's proxy."""

from collections.abc import Callable

from raynest_pipeline.chain.profile import open_chain
from raynest_pipeline.cli.foreground import until_ctrl_c
from raynest_pipeline.kube.forward import serve_forward
from raynest_pipeline.settings import Settings


def forward(settings: Settings, what: str, port: int, on_ready: Callable[[str], None]) -> None:
    """Serve the dashboard or the endpoint until Ctrl-C.

    Raises:
        NotReadyError: The chain isn't up.
        StorageError: The port is taken.
    """
    chain = open_chain(settings, start_sandbox=False)
    with chain.dashboard() if what == "dashboard" else chain.endpoint() as route:
        until_ctrl_c(lambda ready: serve_forward(route.target, port=port, ready=ready), port, on_ready)
