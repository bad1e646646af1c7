"""Solver, tiny VAE, memory layout, precision, cores: each explicit, told in the facts and in the image, and
each as deterministic as without it.
"""

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from PIL import Image

from raynest_pipeline.serving import cores
from raynest_pipeline.serving.contract import ImageRequest
from raynest_pipeline.serving.cores import cpu_quota, usable_cores
from raynest_pipeline.serving.engine import Canvas, Engine
from raynest_pipeline.serving.options import ServingOptions
from raynest_pipeline.serving.painter import finish
from raynest_pipeline.serving.sources import LoadedModel, choose_dtype, load_model
from raynest_pipeline.serving.speed import SOLVERS, SpeedUnavailable, attention_of
from raynest_pipeline.serving.untrained import build_untrained_pipeline

REQUESTS = [ImageRequest(f"prompt {seed}", seed, f"not {seed}") for seed in range(3)]


@pytest.fixture(scope="module")
def tiny_vae(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny VAE with random weights: its code path and its cost, not its pictures."""
    folder = tmp_path_factory.mktemp("tiny-vae")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = AutoencoderTiny(
            encoder_block_out_channels=(8, 8, 8, 8),
            decoder_block_out_channels=(8, 8, 8, 8),
            num_encoder_blocks=(1, 1, 1, 1),
            num_decoder_blocks=(1, 1, 1, 1),
        )
    vae.save_pretrained(folder)
    return str(folder)


def load(**choices: Any) -> LoadedModel:
    return load_model(ServingOptions.model_validate({"default_steps": 4, **choices}))


def paint(model: LoadedModel, requests: list[ImageRequest]) -> list[Canvas]:
    engine = Engine(lambda: model, 1, 8)
    outcomes = engine.submit(requests).result()
    engine.close()
    return [outcome for outcome in outcomes if isinstance(outcome, Canvas)]


def test_what_is_on_without_any_choice() -> None:
    speed = load().speed
    assert speed.attention == "sdpa"
    assert (speed.compile, speed.channels_last, speed.sizes, speed.batches) == ("off", False, (), ())
    assert speed.solver == "DDIMScheduler"
    assert speed.recorded() == {"scheduler": "DDIMScheduler"}


def test_another_attention_is_told_by_its_name() -> None:
    from diffusers.models.attention_processor import AttnProcessor

    unet = build_untrained_pipeline().unet
    unet.set_attn_processor(AttnProcessor())
    assert attention_of(unet) == "AttnProcessor"


CHOICES: list[dict[str, Any]] = [
    *({"scheduler": name} for name in SOLVERS),
    {"channels_last": True},
    {"tiny_vae": "the fixture's"},
    {"bucket_batches": [4]},
    {"scheduler": "unipc", "channels_last": True, "tiny_vae": "the fixture's", "bucket_batches": [4]},
]


@pytest.mark.parametrize("choices", CHOICES, ids=lambda choices: " ".join(map(str, choices.values())))
def test_same_seed_same_image_alone_or_in_any_batch(choices: dict[str, Any], tiny_vae: str) -> None:
    chosen = {**choices, "tiny_vae": tiny_vae} if "tiny_vae" in choices else choices
    model = load(**chosen)
    together = paint(model, REQUESTS)
    reverse = paint(model, REQUESTS[::-1])[::-1]
    for request, in_batch, in_reverse in zip(REQUESTS, together, reverse, strict=True):
        (alone,) = paint(model, [request])
        for other in (in_batch, in_reverse):
            assert np.abs(alone.pixels.astype(int) - other.pixels.astype(int)).max() <= 2
    assert not np.array_equal(together[0].pixels, together[1].pixels)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_keeps_the_model_s_noise_schedule(name: str) -> None:
    own, chosen = load().pipeline.scheduler.config, load(scheduler=name).pipeline.scheduler
    assert type(chosen).__name__ == SOLVERS[name]
    for key in ("beta_start", "beta_end", "beta_schedule", "prediction_type", "num_train_timesteps"):
        assert chosen.config[key] == own[key]


def test_the_image_itself_tells_the_solver_and_the_tiny_vae(tiny_vae: str) -> None:
    model = load(scheduler="dpmsolver++", tiny_vae=tiny_vae)
    (canvas,) = paint(model, REQUESTS[:1])
    text = Image.open(io.BytesIO(finish(REQUESTS[0], canvas, model).data)).text
    assert text["scheduler"] == "DPMSolverMultistepScheduler"
    assert text["vae"] == tiny_vae


def test_a_model_with_other_parts_has_another_revision(tiny_vae: str) -> None:
    """Batches reuse images of the same model and revision, and these are other pictures."""
    assert load().revision == "built-in"
    assert load(scheduler="euler").revision == "built-in+euler"
    assert load(scheduler="euler", tiny_vae=tiny_vae).revision == f"built-in+euler+{tiny_vae}"


def test_a_tiny_vae_paints_other_pictures_and_is_told(tiny_vae: str) -> None:
    model = load(tiny_vae=tiny_vae)
    assert type(model.pipeline.vae).__name__ == "AutoencoderTiny"
    assert model.speed.vae == tiny_vae
    (own,), (tiny,) = paint(load(), REQUESTS[:1]), paint(model, REQUESTS[:1])
    assert own.pixels.shape == tiny.pixels.shape
    assert not np.array_equal(own.pixels, tiny.pixels)


def test_a_tiny_vae_that_is_not_there_or_does_not_fit_is_refused(tmp_path: Path, tiny_vae: str) -> None:
    with pytest.raises(SpeedUnavailable, match="cannot be read.*leave out `tiny_vae`"):
        load(tiny_vae=str(tmp_path))
    AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ).save_pretrained(tmp_path)
    with pytest.raises(SpeedUnavailable, match="2-fold latents of 4 channels, the model 8-fold"):
        load(tiny_vae=str(tmp_path))


def test_channels_last_is_the_layout_of_the_weights() -> None:
    def laid_out(model: LoadedModel) -> bool:
        weight = model.pipeline.unet.conv_in.weight
        return bool(weight.is_contiguous(memory_format=torch.channels_last))

    assert laid_out(load(channels_last=True))
    assert not laid_out(load())


def test_bfloat16_paints_nearly_the_same() -> None:
    model = load(dtype="bfloat16")
    assert model.pipeline.unet.dtype == torch.bfloat16
    (rough,), (exact,) = paint(model, REQUESTS[:1]), paint(load(), REQUESTS[:1])
    assert np.abs(rough.pixels.astype(int) - exact.pixels.astype(int)).mean() < 16


@pytest.mark.parametrize(("supported", "dtype"), [(True, "bfloat16"), (False, "float16")])
def test_half_precision_is_what_the_device_calculates_in(
    supported: bool, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    assert choose_dtype(ServingOptions(), "cuda") == dtype
    assert choose_dtype(ServingOptions(), "cpu") == "float32"
    assert choose_dtype(ServingOptions(dtype="float32"), "cuda") == "float32"


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, "3000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")],
)
def test_the_engine_s_threads_spin_briefly_unless_told_otherwise(
    given: dict[str, str], spins: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenMP reads it when torch is imported: the engine must not have done so before."""
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    environment = {**os.environ, **given}
    code = (
        "import os, sys\n"
        "from raynest_pipeline.serving.engine import Engine\n"
        "import raynest_pipeline.serving.painter\n"
        "assert 'torch' not in sys.modules\n"
        "def load():\n"
        "    print(os.environ.get('GOMP_SPINCOUNT'))\n"
        "    raise SystemExit\n"
        "Engine(load, 1, 1)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == spins, done.stderr


def written(folder: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="ascii")
    return folder


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "250000 100000\n"}, 2.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
    ],
)
def test_the_container_s_cpu_limit(files: dict[str, str], quota: float | None, tmp_path: Path) -> None:
    assert cpu_quota(written(tmp_path, files)) == quota


@pytest.mark.parametrize(("limit", "cores_used"), [("max", 8), ("250000", 3), ("50000", 1), ("1600000", 8)])
def test_no_more_threads_than_the_container_may_use(
    limit: str, cores_used: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda _pid: set(range(8)), raising=False)
    assert usable_cores(written(tmp_path, {"cpu.max": f"{limit} 100000\n"})) == cores_used


def test_the_pipeline_s_thread_has_the_threads_that_the_facts_tell() -> None:
    seen: list[int] = []

    def loading() -> LoadedModel:
        seen.append(torch.get_num_threads())
        return load()

    engine = Engine(loading, 0, 8)
    assert seen == [usable_cores()] == [engine.speed_facts()["cpu_threads"]]
    engine.close()
    engine = Engine(loading, 3, 8)
    assert seen[1:] == [3]
    engine.close()
