"""`raynest open`: a loopback address in front of the API server's proxy."""

import asyncio
from collections.abc import Callable

from raynest_pipeline.chain.profile import open_chain
from raynest_pipeline.errors import StorageError
from raynest_pipeline.kube.forward import serve_forward
from raynest_pipeline.settings import Settings


def forward(settings: Settings, what: str, port: int, on_ready: Callable[[str], None]) -> None:
    """Serve the dashboard or the endpoint until Ctrl-C.

    Raises:
        NotReadyError: The chain isn't up.
        StorageError: The port is taken.
    """
    chain = open_chain(settings, start_sandbox=False)

    async def ready(url: str) -> None:
        on_ready(url)
        await asyncio.Event().wait()

    with chain.dashboard() if what == "dashboard" else chain.endpoint() as route:
        try:
            asyncio.run(serve_forward(route.target, port=port, ready=ready))
        except KeyboardInterrupt:
            # The way to end it.
            return
        except OSError as error:
            raise StorageError(
                f"Port {port} of 127.0.0.1 cannot be used.", why=str(error), fix="Choose another --port."
            ) from None
