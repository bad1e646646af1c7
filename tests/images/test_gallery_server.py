"""The gallery's server: what it gives out, and what it does not."""

import http.client
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from raynest_pipeline.errors import StorageError
from raynest_pipeline.images.gallery.place import Place
from raynest_pipeline.images.gallery.server import gallery_in_background


@pytest.fixture(params=["folder", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    place = Place(tmp_path / "out" if request.param == "folder" else f"memory://{uuid.uuid4().hex}")
    place.write("b1/index.html", b"<!doctype html>page of b1")
    place.write("b1/images/a-0123.png", b"\x89PNG picture")
    place.write("b1/thumbs/a-0123-320.webp", b"RIFF thumb")
    place.write("b1/gallery/data-00000.js", b"raynest(0,[]);")
    place.write("b1/gallery/sheet.jpg", b"\xff\xd8 sheet")
    place.write("b1/manifest.jsonl", b"{}\n")
    place.write("b1/prompts.csv", b"prompt\nsecret plans\n")
    place.write("b1/.lock", b"123")
    place.write("notes.txt", b"private")
    return place


@pytest.fixture
def port(place: Place) -> Iterator[int]:
    with gallery_in_background(place, 0) as url:
        assert url.startswith("http://127.0.0.1:")
        yield int(url.rsplit(":", 1)[1])


def ask(
    port: int, path: str, method: str = "GET", host: str | None = None
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=40)
    try:
        connection.putrequest(method, path, skip_host=True)
        connection.putheader("Host", host or f"127.0.0.1:{port}")
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("path", "kind", "content"),
    [
        ("/b1/index.html", "text/html; charset=utf-8", b"page of b1"),
        ("/b1/", "text/html; charset=utf-8", b"page of b1"),
        ("/b1/images/a-0123.png", "image/png", b"picture"),
        ("/b1/thumbs/a-0123-320.webp", "image/webp", b"thumb"),
        ("/b1/gallery/data-00000.js?abc", "text/javascript; charset=utf-8", b"raynest"),
        ("/b1/gallery/sheet.jpg", "image/jpeg", b"sheet"),
        ("/b1/manifest.jsonl", "text/plain; charset=utf-8", b"{}"),
    ],
)
def test_what_a_gallery_is_made_of(port: int, path: str, kind: str, content: bytes) -> None:
    status, headers, body = ask(port, path)
    assert (status, headers["content-type"]) == (200, kind)
    assert content in body
    assert headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in headers["content-security-policy"]


def test_only_the_small_sheet_may_be_shown_by_other_pages(port: int) -> None:
    policy = "cross-origin-resource-policy"
    assert ask(port, "/b1/gallery/sheet.jpg")[1][policy] == "cross-origin"
    for path in ("/b1/index.html", "/b1/images/a-0123.png", "/b1/gallery/data-00000.js"):
        assert ask(port, path)[1][policy] == "same-origin"


def test_the_first_page_is_written_on_the_way(port: int) -> None:
    status, _, body = ask(port, "/")
    assert status == 200 and b"All batches" in body


@pytest.mark.parametrize(
    "path",
    [
        "/b1/prompts.csv",
        "/b1/.lock",
        "/notes.txt",
        "/b1",
        "/b1/images/",
        "/b1/images/nope.png",
        "/b2/index.html",
        "/../etc/passwd",
        "/b1/../../secret.html",
        "/b1/%2e%2e/%2e%2e/secret.html",
        "/b1/..%2f..%2fsecret.html",
        "/b1%5c..%5csecret.html",
        "//etc/index.html",
        "/b1/images/a/b/c.png",
        "/b1/images/%00.png",
        "/%ff.png",
    ],
)
def test_nothing_else(port: int, path: str, tmp_path: Path) -> None:
    (tmp_path / "secret.html").write_text("secret")
    status, _, body = ask(port, path)
    assert status == 404
    assert b"secret" not in body and b"private" not in body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_it_is_read_only(port: int, method: str, place: Place) -> None:
    assert ask(port, "/b1/index.html", method)[0] == 405
    assert place.read("b1/index.html") == b"<!doctype html>page of b1"


def test_head_is_answered(port: int) -> None:
    status, headers, body = ask(port, "/b1/index.html", "HEAD")
    assert (status, body) == (200, b"") and int(headers["content-length"]) > 0


@pytest.mark.parametrize("host", ["evil.example", "evil.example:3001", "127.0.0.1.evil.example"])
def test_a_name_that_was_bent_to_this_machine_gets_nothing(port: int, host: str) -> None:
    status, _, body = ask(port, "/b1/index.html", host=host)
    assert status == 403 and b"page of b1" not in body


def test_localhost_is_this_machine(port: int) -> None:
    assert ask(port, "/b1/index.html", host=f"localhost:{port}")[0] == 200


def test_a_link_does_not_lead_out(tmp_path: Path) -> None:
    place = Place(tmp_path / "out")
    place.write("b1/images/a.png", b"inside")
    (tmp_path / "secret.png").write_bytes(b"secret")
    (tmp_path / "out" / "b1" / "images" / "b.png").symlink_to(tmp_path / "secret.png")
    with gallery_in_background(place, 0) as url:
        port = int(url.rsplit(":", 1)[1])
        assert ask(port, "/b1/images/a.png")[0] == 200
        assert ask(port, "/b1/images/b.png")[0] == 404


def test_a_store_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(f"memory://{uuid.uuid4().hex}")
    with gallery_in_background(place, 0) as url:

        def fail(self: Place, name: str) -> bytes:
            raise StorageError("memory://x cannot be used: it cannot be read.", why="key-id and secret")

        monkeypatch.setattr(Place, "read", fail)
        status, headers, body = ask(int(url.rsplit(":", 1)[1]), "/b1/index.html")
    assert status == 502 and b"cannot be read" in body and b"secret" not in body
    assert headers["x-content-type-options"] == "nosniff"


def test_it_ends_with_its_context(place: Place) -> None:
    with gallery_in_background(place, 0) as url:
        port = int(url.rsplit(":", 1)[1])
        assert ask(port, "/b1/index.html")[0] == 200
    with pytest.raises(OSError):
        ask(port, "/b1/index.html")


def test_a_taken_port_is_an_error_at_once(place: Place) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        with pytest.raises(OSError), gallery_in_background(place, holder.getsockname()[1]):
            pass


def test_it_is_not_heard_outside_this_machine(port: int) -> None:
    import psutil

    listening = {
        c.laddr.ip
        for c in psutil.Process().net_connections("tcp")
        if c.laddr.port == port and c.status == "LISTEN"
    }
    assert listening == {"127.0.0.1"}
