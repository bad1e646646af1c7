"""The gallery on a loopback address: reads only, and only what a gallery is made of."""

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from mimetypes import guess_type
from pathlib import Path

from aiohttp import web

from raynest_pipeline.errors import StorageError
from raynest_pipeline.images.gallery.batch_page import PAGE, SHEET_SMALL, write_index
from raynest_pipeline.images.gallery.place import Place
from raynest_pipeline.images.names import MAX_FILE_NAME, name_problem

HOST = "127.0.0.1"
SHOWN = frozenset((".html", ".js", ".json", ".jsonl", ".png", ".webp", ".jpg", ".jpeg"))
"""Endings that are served; everything else in the output folder is nobody's business."""
MAX_DEPTH = 3
"""`<batch>/images/<file>`."""
START_SECONDS = 30.0
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; "
    "script-src 'self' 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
    "Cross-Origin-Resource-Policy": "same-origin",
}


async def serve_gallery(root: Place, *, port: int = 0, ready: Callable[[str], Awaitable[None]]) -> None:
    """Serve the gallery on 127.0.0.1 until cancelled.

    Args:
        root: The output folder or prefix.
        port: 0 for a free one.
        ready: Told the address, once it answers, and awaited: return from it to end.

    Raises:
        OSError: The port is taken.
        StorageError: The page over all batches can't be written.
    """
    await asyncio.to_thread(write_index, root)
    app = web.Application()
    app.router.add_get("/{path:.*}", lambda request: _answer(root, request))
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, HOST, port).start()
        host, bound = runner.addresses[0][:2]
        await ready(f"http://{host}:{bound}")
    finally:
        await runner.cleanup()


@contextlib.contextmanager
def gallery_in_background(root: Place, port: int) -> Iterator[str]:
    """Serve the gallery from a thread while the context lasts; its address.

    Raises:
        OSError: The port is taken.
        StorageError: The page over all batches can't be written.
    """
    address: Future[str] = Future()
    stops: list[Callable[[], object]] = []

    async def ready(url: str) -> None:
        loop, over = asyncio.get_running_loop(), asyncio.Event()
        stops.append(lambda: loop.call_soon_threadsafe(over.set))
        address.set_result(url)
        await over.wait()

    def work() -> None:
        try:
            asyncio.run(serve_gallery(root, port=port, ready=ready))
        except BaseException as error:
            if address.done():
                raise
            address.set_exception(error)

    thread = threading.Thread(target=work, name="gallery", daemon=True)
    thread.start()
    try:
        yield address.result(START_SECONDS)
    finally:
        for stop in stops:
            stop()
        thread.join(START_SECONDS)


async def _answer(root: Place, request: web.Request) -> web.StreamResponse:
    if request.host.rsplit(":", 1)[0] not in (HOST, "localhost"):
        # A name of somebody else's that leads here (DNS rebinding): its pages must not read ours.
        return _plain(403, "Only 127.0.0.1 and localhost lead here.")
    name = _safe(request.match_info["path"])
    if name is None:
        return _plain(404, "There is no such page.")
    kind = "text/plain" if name.endswith(".jsonl") else guess_type(name)[0] or "application/octet-stream"
    headers = {
        **HEADERS,
        **_policy(name),
        "Content-Type": f"{kind}; charset=utf-8" if _is_text(kind) else kind,
    }
    if root.folder is not None:
        path = root.folder / name
        if not await asyncio.to_thread(_inside, path, root.folder):
            return _plain(404, "There is no such file.")
        return web.FileResponse(path, headers=headers)
    try:
        data = await asyncio.to_thread(root.read, name)
    except StorageError as error:
        return _plain(502, error.what)
    return _plain(404, "There is no such file.") if data is None else web.Response(body=data, headers=headers)


def _safe(path: str) -> str | None:
    """The name of a file of the gallery; None for anything else. Each part must be a safe name."""
    name = f"{path}{PAGE}" if path == "" or path.endswith("/") else path
    parts = name.split("/")
    if len(parts) > MAX_DEPTH or any(name_problem(part, MAX_FILE_NAME + len("-0000.webp")) for part in parts):
        return None
    return name if Path(parts[-1]).suffix.lower() in SHOWN else None


def _inside(path: Path, folder: Path) -> bool:
    """Whether it is a file, and no link leads out of the folder."""
    return path.is_file() and path.resolve().is_relative_to(folder.resolve())


def _policy(name: str) -> dict[str, str]:
    """Dagster's UI, on another port, shows the small sheets; for Chromium two ports are not even one site."""
    return {"Cross-Origin-Resource-Policy": "cross-origin"} if name.endswith(f"/{SHEET_SMALL}") else {}


def _is_text(kind: str) -> bool:
    return kind.startswith("text/") or kind in ("application/json", "application/javascript")


def _plain(status: int, text: str) -> web.Response:
    return web.Response(status=status, text=text + "\n", headers={k: v for k, v in HEADERS.items()})
