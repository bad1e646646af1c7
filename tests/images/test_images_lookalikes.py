"""Pictures that look the same, and the same picture twice."""

import io
import random
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from raynest_pipeline.images.lookalikes import Pair, alike, difference, fingerprint, lookalikes
from raynest_pipeline.images.record import Record


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def scene(seed: int, side: int = 64) -> Image.Image:
    """A few coloured boxes: as different as seeds make them."""
    rnd = random.Random(seed)
    image = Image.new("RGB", (side, side), tuple(rnd.randrange(256) for _ in range(3)))
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        x, y = rnd.randrange(side), rnd.randrange(side)
        box = (x, y, x + rnd.randrange(8, side // 2), y + rnd.randrange(8, side // 2))
        draw.rectangle(box, fill=tuple(rnd.randrange(256) for _ in range(3)))
    return image


def noisy(image: Image.Image, seed: int = 1) -> Image.Image:
    return _shaken(image, random.Random(seed))


def _shaken(image: Image.Image, rnd: random.Random) -> Image.Image:
    data = bytes(min(255, max(0, value + rnd.randint(-3, 3))) for value in image.tobytes())
    return Image.frombytes("RGB", image.size, data)


def record(name: str, seed: int) -> Record:
    return Record(
        id=name,
        batch="b",
        status="made",
        key="k",
        prompt="p",
        negative_prompt="",
        seed=seed,
        size=None,
        steps=None,
        guidance=None,
        model="m",
        revision="",
        made_at="2026-01-01T00:00:00Z",
        file=f"images/{name}.png",
    )


def compare(pictures: dict[str, tuple[int, Image.Image]], most: int = 100) -> tuple[int, list[Pair]]:
    files = {f"images/{name}.png": png(image) for name, (_, image) in pictures.items()}
    return lookalikes([record(name, seed) for name, (seed, _) in pictures.items()], files.get, most=most)


class TestAlike:
    @pytest.mark.parametrize("seed", range(5))
    def test_a_little_noise_is_the_same_picture(self, seed: int) -> None:
        one, two = fingerprint(png(scene(seed))), fingerprint(png(noisy(scene(seed))))
        assert one is not None and two is not None and alike(one, two)

    def test_other_pictures_are_not(self) -> None:
        prints = [fingerprint(png(scene(seed))) for seed in range(40)]
        found = [(a, b) for a in range(40) for b in range(a) if alike(prints[a], prints[b])]  # type: ignore[arg-type]
        assert found == []

    def test_colour_tells_what_brightness_does_not(self) -> None:
        red, green = (Image.new("RGB", (64, 64), "white") for _ in range(2))
        for image, colour in ((red, (200, 0, 0)), (green, (0, 102, 0))):
            ImageDraw.Draw(image).ellipse((10, 10, 50, 50), fill=colour)
        one, two = fingerprint(png(red)), fingerprint(png(green))
        assert one is not None and two is not None
        assert (one.dhash ^ two.dhash).bit_count() <= 3, "the hash alone would call them the same"
        assert not alike(one, two)

    def test_two_shapes_on_a_plain_ground_are_two_pictures(self) -> None:
        circle, cross = (Image.new("RGB", (96, 96), (248, 248, 248)) for _ in range(2))
        ImageDraw.Draw(circle).ellipse((28, 28, 68, 68), fill=(40, 85, 215))
        ImageDraw.Draw(cross).rectangle((26, 40, 70, 56), fill=(40, 85, 215))
        ImageDraw.Draw(cross).rectangle((40, 26, 56, 70), fill=(40, 85, 215))
        one, two = fingerprint(png(circle)), fingerprint(png(cross))
        assert one is not None and two is not None and not alike(one, two)

    def test_what_is_no_image_has_no_print(self) -> None:
        assert fingerprint(b"not an image") is None


class TestLookalikes:
    def test_repeats_under_other_seeds_are_found(self) -> None:
        again = scene(1)
        seen, pairs = compare(
            {"a": (1, again), "b": (2, scene(2)), "c": (3, noisy(again)), "d": (4, scene(3))}
        )
        assert (seen, pairs) == (4, [Pair("a", "c")])

    def test_the_same_seed_may_repeat_itself(self) -> None:
        assert compare({"a": (1, scene(1)), "b": (1, scene(1))}) == (2, [])

    def test_each_pair_is_told_once_and_no_more_than_wanted(self) -> None:
        same = {f"p{n}": (n, scene(1)) for n in range(6)}
        assert len(compare(same)[1]) == 15
        assert len(compare(same, most=4)[1]) == 4

    def test_what_is_missing_or_damaged_is_left_out(self) -> None:
        records = [record("a", 1), record("b", 2)]
        assert lookalikes(records, {"images/a.png": b"junk"}.get) == (0, [])

    def test_many_plain_pictures_stay_cheap(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from raynest_pipeline.images import lookalikes as module

        compared = 0

        def count(*_: object) -> bool:
            nonlocal compared
            compared += 1
            return False

        monkeypatch.setattr(module, "alike", count)
        plain = png(Image.new("RGB", (8, 8), "white"))
        module.lookalikes([record(f"p{n}", n) for n in range(500)], lambda _: plain)
        assert compared <= 500 * module.MOST_COMPARED * module.BANDS


class TestDifference:
    def test_none_at_all(self) -> None:
        assert difference(png(scene(1)), png(scene(1))) == 0

    def test_the_largest_of_any_channel_of_any_pixel(self) -> None:
        other = scene(1)
        red, green, blue = other.getpixel((5, 7))  # type: ignore[misc]
        other.putpixel((5, 7), (red, green + 9 if green < 200 else green - 9, blue))
        assert difference(png(scene(1)), png(other)) == 9

    def test_another_size_cannot_be_compared(self) -> None:
        assert difference(png(scene(1, 64)), png(scene(1, 32))) is None

    def test_no_image_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="not an image"):
            difference(b"junk", png(scene(1)))
