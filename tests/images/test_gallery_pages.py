"""The gallery's pages: what is in them, and what a prompt cannot put there."""

import io
import json
import re
import uuid
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from raynest_pipeline.errors import StorageError
from raynest_pipeline.images import side_by_side
from raynest_pipeline.images.gallery import batch_page, thumbs
from raynest_pipeline.images.gallery.batch_page import write_batch_page, write_index
from raynest_pipeline.images.gallery.place import Place
from raynest_pipeline.images.record import Record
from raynest_pipeline.settings import Gallery


def record(name: str, **more: Any) -> Record:
    given: dict[str, Any] = {
        "id": name,
        "batch": "b1",
        "status": "made",
        "key": "k" * 64,
        "prompt": f"a picture of {name}",
        "negative_prompt": "",
        "seed": 7,
        "size": 64,
        "steps": 20,
        "guidance": 7.5,
        "model": "shapes",
        "revision": "abc",
        "made_at": "2026-11-24T09:00:00Z",
        "file": f"images/{name}-0123.png",
        "width": 64,
        "height": 64,
        "latency_ms": 812.4,
        "size_bytes": 1000,
        "sha256": "a" * 64,
        "attempts": 1,
    }
    return Record(**{**given, **more})


def failed(name: str) -> Record:
    return record(name, status="failed", file=None, error="the endpoint refuses it", width=None, height=None)


def png(side: int) -> bytes:
    buffer = io.BytesIO()
    Image.radial_gradient("L").resize((side, side)).save(buffer, "PNG")
    return buffer.getvalue()


def under(place: Place, name: str) -> Place:
    return Place(f"{place.url}/{name}")


def write(place: Place, records: list[Record], **more: Any) -> batch_page.Summary:
    return write_batch_page(under(place, "b1"), "b1", iter(records), Gallery(**more))


def data(place: Place, chunk: int = 0) -> list[dict[str, Any]]:
    text = (place.read(f"b1/gallery/data-{chunk:05}.js") or b"").decode()
    match = re.fullmatch(r"raynest\((\d+),(.*)\);\n", text)
    assert match is not None and int(match[1]) == chunk
    rows: list[dict[str, Any]] = json.loads(match[2])
    return rows


def constant(page: bytes | None, name: str) -> Any:
    match = re.search(rf"^const {name} = (.*);$", (page or b"").decode(), re.MULTILINE)
    assert match is not None
    return json.loads(match[1])


@pytest.fixture(params=["folder", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return Place(tmp_path / "out" if request.param == "folder" else f"memory://{uuid.uuid4().hex}")


class TestBatchPage:
    def test_a_row_has_what_a_person_wants_to_know(self, place: Place) -> None:
        write(
            place,
            [record("a", negative_prompt="blur", attempts=3, extra={"x_product": "P-1", "x_gap": None})],
        )
        (row,) = data(place)
        assert row == {
            "id": "a",
            "prompt": "a picture of a",
            "negative": "blur",
            "seed": 7,
            "size": 64,
            "steps": 20,
            "guidance": 7.5,
            "w": 64,
            "h": 64,
            "file": "images/a-0123.png",
            "ms": 812,
            "attempts": 3,
            "bytes": 1000,
            "sha": "a" * 64,
            "at": "2026-11-24T09:00:00Z",
            "m": 0,
            "x": {"product": "P-1"},
        }

    def test_a_failure_has_its_reason_and_no_picture(self, place: Place) -> None:
        summary = write(place, [record("a"), failed("b")])
        assert (summary.images, summary.finished, summary.failed) == (2, 1, 1)
        row = data(place)[1]
        assert row["error"] == "the endpoint refuses it" and "file" not in row

    def test_seed_zero_is_a_seed_and_a_huge_one_stays_exact(self, place: Place) -> None:
        write(place, [record("a", seed=0), record("b", seed=2**63 - 1)])
        assert [row["seed"] for row in data(place)] == [0, str(2**63 - 1)]

    def test_many_rows_come_in_chunks(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(batch_page, "CHUNK", 4)
        write(place, [record(f"{n:03}") for n in range(10)])
        assert [[row["id"] for row in data(place, chunk)] for chunk in range(3)] == [
            ["000", "001", "002", "003"],
            ["004", "005", "006", "007"],
            ["008", "009"],
        ]
        page = constant(place.read("b1/index.html"), "BATCH")
        assert (page["chunks"], page["chunk"], page["images"]) == (3, 4, 10)

    def test_the_page_comes_last(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        order: list[str] = []
        real = Place.write

        def note(self: Place, name: str, content: bytes) -> None:
            order.append(name)
            real(self, name, content)

        monkeypatch.setattr(Place, "write", note)
        write(place, [record("a")])
        assert order == ["gallery/data-00000.js", "gallery/summary.json", "index.html"]

    def test_a_browser_does_not_mix_old_data_with_a_new_page(self, place: Place) -> None:
        versions = []
        for prompt in ("one", "two", "two"):
            write(place, [record("a", prompt=prompt)])
            versions.append(constant(place.read("b1/index.html"), "BATCH")["version"])
        assert versions[0] != versions[1] == versions[2]

    def test_a_batch_without_an_image_has_a_page(self, place: Place) -> None:
        summary = write(place, [])
        assert (summary.images, summary.cover) == (0, [])
        assert constant(place.read("b1/index.html"), "BATCH")["chunks"] == 0

    def test_models_are_named_once(self, place: Place) -> None:
        rows = [record("a"), record("b", model="other", revision=""), record("c")]
        assert write(place, rows).models == ["shapes@abc", "other"]
        assert [row["m"] for row in data(place)] == [0, 1, 0]

    def test_the_cover_is_spread_over_the_batch(self, place: Place) -> None:
        cover = write(place, [record(f"{n:04}") for n in range(500)]).cover
        numbers = [int(name[len("images/") :][:4]) for name in cover]
        assert len(numbers) == 4 and numbers[0] == 0
        assert all(100 <= b - a <= 240 for a, b in zip(numbers, numbers[1:], strict=False)), numbers

    @pytest.mark.parametrize(
        "prompt",
        [
            "</script><script>alert(1)</script>",
            "<img src=x onerror=alert(1)>",
            "line\u2028break\u2029s",
            "`${alert(1)}` $batch $$ \\u003c \"quoted\" 'too'",
            "",
        ],
    )
    def test_a_prompt_stays_text(self, place: Place, prompt: str) -> None:
        write(place, [record("a", prompt=prompt, extra={"x_note": prompt})])
        text = (place.read("b1/gallery/data-00000.js") or b"").decode()
        assert "<" not in text and "\u2028" not in text and "\u2029" not in text
        (row,) = data(place)
        assert row.get("prompt", "") == prompt

    def test_a_model_name_stays_text_in_the_page(self, place: Place) -> None:
        write(place, [record("a", model="</script><b>")])
        page = (place.read("b1/index.html") or b"").decode()
        assert "</script><b>" not in page and page.count("</script>") == 1

    def test_the_page_needs_nothing_from_elsewhere(self, place: Place) -> None:
        write(place, [record("a")])
        write_index(place)
        for name in ("b1/index.html", "index.html"):
            page = (place.read(name) or b"").decode()
            assert not re.search(
                r"https?://|url\(|@import|fetch\(|XMLHttpRequest", page.replace("fetch().", "")
            ), name


def test_numbers_too_large_for_a_browser_are_text(place: Place) -> None:
    write(place, [record("a", seed=2**60, extra={"x_product": 2**60 + 1, "x_price": 9.5})])
    (row,) = data(place)
    assert row["seed"] == str(2**60) and row["x"] == {"product": str(2**60 + 1), "price": 9.5}


class TestThumbs:
    def made(self, place: Place, sides: list[int], **more: Any) -> list[str | None]:
        records = []
        for number, side in enumerate(sides):
            records.append(record(f"{number}", width=side, height=side))
            under(place, "b1").write(f"images/{number}-0123.png", png(side))
        write(place, records, **more)
        return [row.get("thumb") for row in data(place)]

    def test_large_images_get_one_and_small_ones_do_not(self, place: Place) -> None:
        names = self.made(place, [64, 512], thumbnail_pixels=128)
        assert names == [None, "thumbs/1-0123-128.webp"]
        with Image.open(io.BytesIO(place.read(f"b1/{names[1]}") or b"")) as image:
            assert (image.format, image.size) == ("WEBP", (128, 128))

    def test_the_proportions_stay(self) -> None:
        buffer = io.BytesIO()
        Image.new("RGB", (400, 100)).save(buffer, "PNG")
        with Image.open(io.BytesIO(thumbs.shrink(buffer.getvalue(), 80) or b"")) as image:
            assert image.size == (80, 20)

    def test_a_second_time_none_is_made(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        first = self.made(place, [512, 512], thumbnail_pixels=128)
        monkeypatch.setattr(thumbs, "shrink", lambda *_: pytest.fail("it is there already"))
        assert self.made(place, [512, 512], thumbnail_pixels=128) == first

    def test_beyond_the_limit_the_image_itself_is_shown(self, place: Place) -> None:
        names = self.made(place, [512, 64, 512, 512], thumbnail_pixels=128, max_thumbnails=1)
        assert names == ["thumbs/0-0123-128.webp", None, None, None]

    def test_the_order_is_kept(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(side_by_side, "AHEAD", 3)
        self.made(place, [512] * 8, thumbnail_pixels=128, max_thumbnails=5)
        assert [row["id"] for row in data(place)] == [str(n) for n in range(8)]

    @pytest.mark.parametrize("content", [None, b"", b"junk", png(512)[:500]])
    def test_an_image_that_cannot_be_read_spoils_nothing(self, place: Place, content: bytes | None) -> None:
        if content is not None:
            under(place, "b1").write("images/a-0123.png", content)
        write(place, [record("a", width=512, height=512)], thumbnail_pixels=128)
        (row,) = data(place)
        assert "thumb" not in row and row["file"] == "images/a-0123.png"


class TestIndex:
    def test_all_batches_that_have_a_page(self, place: Place) -> None:
        for name, count in (("one", 1), ("two", 2)):
            write_batch_page(under(place, name), name, [record(str(n)) for n in range(count)], Gallery())
        place.write("three/manifest.jsonl", b"")
        assert write_index(place) == 2
        batches = constant(place.read("index.html"), "BATCHES")
        assert [(batch["batch"], batch["finished"]) for batch in batches] == [("one", 1), ("two", 2)]

    def test_a_damaged_summary_hides_one_batch_only(self, place: Place) -> None:
        write_batch_page(under(place, "one"), "one", [record("a")], Gallery())
        for name, content in (("bad", b"{"), ("list", b"[]"), (".hidden", b"{}")):
            place.write(f"{name}/gallery/summary.json", content)
        assert write_index(place) == 1

    def test_a_renamed_folder_goes_by_its_new_name(self, place: Place) -> None:
        write_batch_page(under(place, "new"), "old", [record("a")], Gallery())
        write_index(place)
        assert [batch["batch"] for batch in constant(place.read("index.html"), "BATCHES")] == ["new"]

    def test_a_batch_that_ends_meanwhile_is_not_lost(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Two runs end at once: the other one writes its page between this one's look and its writing."""
        write_batch_page(under(place, "one"), "one", [record("a")], Gallery())
        real = Place.write

        def late(self: Place, name: str, data: bytes) -> None:
            if name == "index.html" and not place.read("two/gallery/summary.json"):
                monkeypatch.setattr(Place, "write", real)
                write_batch_page(under(place, "two"), "two", [record("b")], Gallery())
                write_index(place)
            real(self, name, data)

        monkeypatch.setattr(Place, "write", late)
        assert write_index(place) == 2
        assert [b["batch"] for b in constant(place.read("index.html"), "BATCHES")] == ["one", "two"]

    def test_nothing_yet(self, place: Place) -> None:
        assert write_index(place) == 0


class TestPlace:
    def test_what_is_not_there(self, place: Place) -> None:
        assert place.read("nothing") is None and place.names("nowhere") == set()
        assert place.folders() == set()

    def test_files_and_folders_are_told_apart(self, place: Place) -> None:
        for name in ("index.html", "b1/a.txt", "b1/images/a.png", "b2/b.txt"):
            place.write(name, b"1")
        assert place.folders() == {"b1", "b2"} and place.names() == {"index.html"}
        assert place.names("b1") == {"a.txt"}

    def test_a_write_leaves_no_traces(self, tmp_path: Path) -> None:
        place = Place(tmp_path)
        place.write("a/b.txt", b"1")
        place.write("a/b.txt", b"2")
        assert place.read("a/b.txt") == b"2" and place.names("a") == {"b.txt"}

    def test_an_interrupted_one_neither(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        place = Place(tmp_path)
        place.write("b.txt", b"1")
        monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            place.write("b.txt", b"2")
        assert place.names() == {"b.txt"} and place.read("b.txt") == b"1"

    def test_what_cannot_be_written_is_told(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(StorageError, match="cannot be used"):
            Place(tmp_path / "file").write("a.txt", b"")
        with pytest.raises(StorageError, match="no driver for nosuchstore://"):
            Place("nosuchstore://bucket")

    def test_only_a_folder_is_on_this_machine(self, tmp_path: Path) -> None:
        assert Place(tmp_path).folder == tmp_path
        assert Place(f"file://{tmp_path}").folder == tmp_path
        assert Place("memory://x").folder is None
