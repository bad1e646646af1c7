"""A server on loopback that runs until Ctrl-C."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from raynest_pipeline.errors import StorageError

Ready = Callable[[str], Awaitable[None]]


def until_ctrl_c(
    serve: Callable[[Ready], Coroutine[Any, Any, None]], port: int, on_ready: Callable[[str], None]
) -> None:
    """Run `serve`, which tells its address to what it is given and ends when that returns, until Ctrl-C.

    Args:
        serve: Makes the server's coroutine.
        port: Where it listens; for the message when it can't.
        on_ready: Told the address.

    Raises:
        StorageError: The port is taken.
    """

    async def ready(url: str) -> None:
        on_ready(url)
        await asyncio.Event().wait()

    try:
        asyncio.run(serve(ready))
    except KeyboardInterrupt:
        # The way to end it.
        return
    except OSError as error:
        raise StorageError(
            f"Port {port} of 127.0.0.1 cannot be used.", why=str(error), fix="Choose another --port."
        ) from None
