"""The training program in miniature: each stage runs, resumes where it was cut, exports a loadable model."""

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from raynest_pipeline.serving.options import ServingOptions
from raynest_pipeline.serving.sources import load_model
from raynest_pipeline.serving.tinymodel import train as training
from raynest_pipeline.serving.tinymodel.data import captioned
from raynest_pipeline.serving.tinymodel.evaluate import load, paint
from raynest_pipeline.serving.tinymodel.model import (
    MAX_TOKENS,
    build_text_encoder,
    build_tokenizer,
    build_vae,
)
from raynest_pipeline.serving.tinymodel.progress import Clock, cosine_rate, save_atomically, save_folder
from raynest_pipeline.serving.tinymodel.train_text import tokenize
from raynest_pipeline.serving.tinymodel.train_unet import UNetTrainer
from raynest_pipeline.serving.tinymodel.train_vae import edge_weight, small_shapes, standardize, to_tensor


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """For so little work, threads that wait for each other on a busy machine take ten times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model trained for next to nothing."""
    out = tmp_path_factory.mktemp("training")
    miniature_run(out)
    return out


def miniature_run(out: Path, images: str = "64") -> None:
    steps = [
        "--text-steps",
        "1",
        "--tolerance-steps",
        "1",
        "--vae-steps",
        "1",
        "--decoder-steps",
        "1",
        "--refine-steps",
        "1",
    ]
    steps += ["--steps", "2"]
    sizes = ["--images", images, "--vocabulary", "small", "--checkpoint-every", "1"]
    training.main(["--out", str(out), "--threads", "1", *steps, *sizes])


def test_the_export_is_a_model_folder_like_any_other(miniature: Path) -> None:
    model = load_model(ServingOptions(model=str(miniature / "pipeline")))
    assert (model.name, model.revision, model.native_size) == ("raynest-shapes", "step-2", 96)
    assert model.default_steps == training.DEFAULT_STEPS
    assert type(model.pipeline).__name__ == "StableDiffusionPipeline"


def test_the_export_fits_its_budget_and_holds_only_safetensors(miniature: Path) -> None:
    files = [path for path in (miniature / "pipeline").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 16_000_000
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".txt"}


def test_the_export_does_not_say_where_it_was_made(miniature: Path) -> None:
    texts = [path.read_text(encoding="utf-8") for path in (miniature / "pipeline").rglob("*.json")]
    assert texts
    assert not [text for text in texts if str(miniature) in text]


def test_its_tokenizer_is_one_for_older_libraries_too(miniature: Path, tmp_path: Path) -> None:
    """transformers 4 reads vocab.json and merges.txt, of which 5 saves neither."""
    folder = miniature / "pipeline" / "tokenizer"
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        shutil.copy(folder / name, tmp_path)
    captions = ["a small red circle left of a big grey star", "an elephant in a hat", "红色"]
    old, new = CLIPTokenizer.from_pretrained(tmp_path), CLIPTokenizer.from_pretrained(folder)
    assert tokenize(old, captions).tolist() == tokenize(new, captions).tolist()


def test_data_made_with_other_options_are_made_anew(miniature: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    shutil.copytree(miniature, again)
    before = torch.load(again / "latents.pt", weights_only=True)
    (again / "unet.pt").unlink()
    miniature_run(again)
    assert torch.equal(torch.load(again / "latents.pt", weights_only=True)["latents"], before["latents"])
    miniature_run(again, images="128")
    assert len(torch.load(again / "latents.pt", weights_only=True)["latents"]) == 128


def test_half_a_saved_part_does_not_count(tmp_path: Path) -> None:
    class Part:
        def save_pretrained(self, folder: Path) -> None:
            folder.mkdir()
            (folder / "config.json").write_text("{}")
            raise Interrupted

    with pytest.raises(Interrupted):
        save_folder(Part(), tmp_path / "vae")
    assert not (tmp_path / "vae").exists()
    tokenizer = build_tokenizer()
    save_folder(tokenizer, tmp_path / "vae")
    assert (tmp_path / "vae" / "tokenizer.json").is_file()


def test_it_paints_at_its_native_size(miniature: Path) -> None:
    pipeline, _, guidance = load(miniature / "pipeline")
    images = paint(pipeline, ["a red circle", "an elephant in a hat"], [1, 2], steps=2, guidance=guidance)
    assert images.shape == (2, 96, 96, 3)
    assert images.dtype == np.uint8


def test_a_finished_training_is_left_as_it_is(miniature: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (miniature / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    miniature_run(miniature)
    assert "resuming at step 2" in capsys.readouterr().out
    assert (miniature / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == before


def trainer() -> UNetTrainer:
    generator = torch.Generator().manual_seed(0)
    data = {
        "latents": torch.randn(16, 4, 24, 24, generator=generator),
        "ids": torch.randint(0, 100, (16, MAX_TOKENS), generator=generator),
    }
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    return UNetTrainer(build_text_encoder(tokenizer).eval(), tokenizer, data, seed=0, batch=2)


def averages(of: UNetTrainer) -> list[torch.Tensor]:
    return [parameter.clone() for parameter in of.ema.parameters()]


class Interrupted(Exception):
    """Stands for a killed process."""


def test_an_interrupted_training_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    def ignore(_unet: Any, _step: int) -> None:
        return

    def interrupt(_unet: Any, step: int) -> None:
        if step == 2:
            raise Interrupted

    whole = trainer()
    whole.train(4, None, tmp_path / "whole.pt", every=2, export=ignore)
    first = trainer()
    with pytest.raises(Interrupted):
        first.train(4, None, tmp_path / "cut.pt", every=2, export=interrupt)
    second = trainer()
    assert second.resume(tmp_path / "cut.pt")
    assert second.step == 2
    second.train(4, None, tmp_path / "cut.pt", every=2, export=ignore)
    assert all(torch.equal(a, b) for a, b in zip(averages(whole), averages(second), strict=True))


def test_a_training_can_start_from_another_s_weights(tmp_path: Path) -> None:
    first = trainer()
    first.train(2, None, tmp_path / "first.pt", every=2, export=lambda _unet, _step: None)
    second = trainer()
    second.start_from(tmp_path / "first.pt")
    assert second.step == 0
    assert all(torch.equal(a, b) for a, b in zip(averages(first), averages(second), strict=True))
    with pytest.raises(FileNotFoundError, match="no checkpoint to start from"):
        second.start_from(tmp_path / "none.pt")


def test_there_is_nothing_to_resume_at_first(tmp_path: Path) -> None:
    assert not trainer().resume(tmp_path / "none.pt")


def test_latents_are_standardized_without_changing_the_picture() -> None:
    torch.manual_seed(0)
    vae = build_vae().eval()
    pixels = to_tensor(captioned(5, 8)[1])
    with torch.no_grad():
        before = vae.decode(vae.encode(pixels).latent_dist.mean).sample
        standardize(vae, 0)
        latents = vae.encode(pixels).latent_dist.mean
        after = vae.decode(latents).sample
    assert torch.allclose(before, after, atol=1e-3)
    assert abs(float(latents.std()) - 1) < 0.3
    assert vae.config.scaling_factor == 1.0


def test_edges_weigh_ten_times_what_flat_pixels_do() -> None:
    pixels = torch.full((1, 3, 32, 32), -1.0)
    pixels[:, 0, :, 16:] = 1.0
    weight = edge_weight(pixels)
    assert weight.shape == (1, 1, 32, 32)
    assert weight.mean().item() == pytest.approx(1.0, abs=1e-5)
    near, far = weight[0, 0, 16, 16].item(), weight[0, 0, 16, 2].item()
    assert near == pytest.approx(10 * far)
    assert (weight[0, 0, 16] == near).sum().item() == 4


def test_refinement_sees_whole_images_and_the_same_ones_again() -> None:
    first, again, other = small_shapes(1, 3), small_shapes(1, 3), small_shapes(2, 3)
    assert first.shape == (3, 3, 96, 96)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_pixels_span_minus_one_to_one() -> None:
    tensor = to_tensor(np.array([[[[0, 127.5, 255]]]]).astype(np.float32))
    assert tensor.shape == (1, 3, 1, 1)
    assert tensor.flatten().tolist() == [-1.0, 0.0, 1.0]


@given(st.floats(0, 1))
def test_the_rate_stays_between_nothing_and_its_peak(fraction: float) -> None:
    assert 0 < cosine_rate(fraction) <= 1


def test_the_rate_rises_then_falls() -> None:
    assert cosine_rate(0) < cosine_rate(0.03) == 1
    assert cosine_rate(0.03) > cosine_rate(0.5) > cosine_rate(1)
    assert math.isclose(cosine_rate(1), 0.03)


def test_a_clock_follows_steps_or_minutes_whichever_is_further() -> None:
    assert Clock(10).fraction(5) == 0.5
    assert Clock(10, minutes=1, spent=45).fraction(1) >= 0.75
    assert Clock(10, minutes=1000, spent=0).fraction(5) == 0.5
    assert Clock(10, spent=30).spent >= 30


def test_a_checkpoint_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.pt"
    save_atomically({"step": 1}, path)

    def half(_state: Any, partial: Path) -> None:
        partial.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="No space"):
        save_atomically({"step": 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
