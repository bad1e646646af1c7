"""Which files of a listing are taken, what revision they make, and what a whole model folder is."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raynest_pipeline.serving.modelfiles import (
    RemoteFile,
    SourceFailed,
    choose_files,
    choose_weights,
    library_errors,
    listing_revision,
    missing_parts,
    not_driven,
    parts_of,
    read_index,
    unfetched,
    variant_of,
)

NAMES = """
.gitattributes README.md model_index.json v1-5-pruned.ckpt v1-5-pruned-emaonly.safetensors v1-inference.yaml
feature_extractor/preprocessor_config.json
safety_checker/config.json safety_checker/model.safetensors safety_checker/model.fp16.safetensors
safety_checker/pytorch_model.bin safety_checker/pytorch_model.fp16.bin
scheduler/scheduler_config.json
text_encoder/config.json text_encoder/model.safetensors text_encoder/model.fp16.safetensors
text_encoder/pytorch_model.bin text_encoder/pytorch_model.fp16.bin
tokenizer/merges.txt tokenizer/special_tokens_map.json tokenizer/tokenizer_config.json tokenizer/vocab.json
unet/config.json unet/diffusion_pytorch_model.bin unet/diffusion_pytorch_model.fp16.bin
unet/diffusion_pytorch_model.fp16.safetensors unet/diffusion_pytorch_model.non_ema.bin
unet/diffusion_pytorch_model.non_ema.safetensors unet/diffusion_pytorch_model.safetensors
vae/config.json vae/diffusion_pytorch_model.bin vae/diffusion_pytorch_model.fp16.safetensors
vae/diffusion_pytorch_model.safetensors
"""
SD15 = NAMES.split()
"""The file names of Stable Diffusion 1.5 on the hub."""


def files(paths: list[str]) -> list[RemoteFile]:
    return [RemoteFile(path, len(path), path) for path in paths]


def chosen(paths: list[str], half: bool = False) -> list[str]:
    return [file.path for file in choose_files(files(paths), half).files]


def test_of_stable_diffusion_one_set_of_weights_is_taken() -> None:
    taken = chosen(SD15)
    assert [path for path in taken if path.endswith((".safetensors", ".bin", ".ckpt"))] == [
        "safety_checker/model.safetensors",
        "text_encoder/model.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    assert {path for path in taken if path.startswith("tokenizer/")} == {
        path for path in SD15 if path.startswith("tokenizer/")
    }
    assert "model_index.json" in taken
    assert not {"README.md", "v1-5-pruned.ckpt", "v1-inference.yaml"} & set(taken)


def test_half_precision_halves_the_download_where_it_is_everywhere() -> None:
    weights = [path for path in chosen(SD15, half=True) if path.endswith(".safetensors")]
    assert len(weights) == 4
    assert all(".fp16." in path for path in weights)
    without = [path for path in SD15 if path != "vae/diffusion_pytorch_model.fp16.safetensors"]
    assert not any(".fp16." in path for path in chosen(without, half=True)), "never mixed"


@pytest.mark.parametrize(
    ("paths", "taken"),
    [
        (["u/model.fp16.safetensors"], ["u/model.fp16.safetensors"]),
        (["u/pytorch_model.bin"], ["u/pytorch_model.bin"]),
        (["u/pytorch_model.bin", "u/model.safetensors"], ["u/model.safetensors"]),
        (["a/model.safetensors", "b/pytorch_model.bin"], ["a/model.safetensors", "b/pytorch_model.bin"]),
        (
            [
                "u/model-00001-of-00002.safetensors",
                "u/model-00002-of-00002.safetensors",
                "u/model.fp16.safetensors",
            ],
            ["u/model-00001-of-00002.safetensors", "u/model-00002-of-00002.safetensors"],
        ),
        (
            ["u/diffusion_pytorch_model.fp16-00001-of-00001.safetensors"],
            ["u/diffusion_pytorch_model.fp16-00001-of-00001.safetensors"],
        ),
        (["u/model.onnx", "u/flax_model.msgpack", "u/model.non_ema.safetensors"], []),
    ],
)
def test_weights_come_in_many_names(paths: list[str], taken: list[str]) -> None:
    assert choose_weights(paths, half=False) == taken


def test_a_listing_without_an_index_is_no_model() -> None:
    with pytest.raises(SourceFailed, match=r"no model_index\.json"):
        chosen(["unet/config.json"])


SD3_NAMES = """
model_index.json scheduler/scheduler_config.json text_encoder/config.json text_encoder/model.safetensors
tokenizer/vocab.json transformer/config.json transformer/diffusion_pytorch_model.safetensors
vae/config.json vae/diffusion_pytorch_model.safetensors
"""
SD3 = SD3_NAMES.split()
"""Some of the file names of Stable Diffusion 3 on the hub."""


@pytest.mark.parametrize(
    ("paths", "lacks"),
    [
        (SD3, "it has no unet; only"),
        ([path for path in SD15 if not path.startswith("vae/")], "it has no vae; only"),
        (["model_index.json", "unet.json", "transformer/vae/config.json"], "it has no unet and no vae; only"),
    ],
)
def test_a_listing_without_a_unet_or_a_vae_is_of_another_kind(paths: list[str], lacks: str) -> None:
    with pytest.raises(SourceFailed, match=lacks):
        chosen(paths)


@pytest.mark.parametrize(
    "path", ["../x.json", "a/../../x.json", "/etc/x.json", "a\\..\\x/y.json", "C:/x.json"]
)
def test_a_listing_cannot_write_elsewhere(path: str) -> None:
    with pytest.raises(SourceFailed, match="listing has the path"):
        chosen(["model_index.json", path])


@given(
    st.lists(
        st.builds(RemoteFile, st.text(max_size=5), st.integers(0, 9), st.text(max_size=3)),
        max_size=5,
        unique_by=lambda file: file.path,
    ),
    st.randoms(),
)
def test_a_revision_depends_on_the_files_and_not_on_their_order(
    listed: list[RemoteFile], random: object
) -> None:
    shuffled = sorted(listed, key=lambda file: hash((file, id(random))))
    assert listing_revision(shuffled) == listing_revision(listed)
    assert listing_revision([*listed, RemoteFile("another", 1)]) != listing_revision(listed)


def test_a_revision_follows_each_property() -> None:
    base = listing_revision([RemoteFile("a", 1, "x")])
    others = [RemoteFile("b", 1, "x"), RemoteFile("a", 2, "x"), RemoteFile("a", 1, "y")]
    assert len({base, *(listing_revision([other]) for other in others)}) == 4


def test_what_is_missing_or_short_is_still_to_be_fetched(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "whole").write_bytes(b"1234")
    (tmp_path / "unet" / "short").write_bytes(b"12")
    listed = [RemoteFile("unet/whole", 4), RemoteFile("unet/short", 4), RemoteFile("gone", 0)]
    assert [file.path for file in unfetched(tmp_path, listed)] == ["unet/short", "gone"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    index = {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "safety_checker": [None, None],
    }
    for path, text in {
        "model_index.json": json.dumps(index),
        "unet/config.json": "{}",
        "unet/diffusion_pytorch_model.safetensors": "w",
        "scheduler/scheduler_config.json": "{}",
    }.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text, encoding="utf-8")
    return tmp_path


def test_a_whole_folder_lacks_nothing(folder: Path) -> None:
    assert missing_parts(folder) == []
    assert variant_of(folder) is None


def test_a_missing_component_is_named(folder: Path) -> None:
    (folder / "scheduler" / "scheduler_config.json").unlink()
    (folder / "scheduler").rmdir()
    assert missing_parts(folder) == ["scheduler"]


def test_missing_weights_are_named(folder: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    assert missing_parts(folder) == ["unet's weights"]
    weights.symlink_to(folder / "blobs" / "gone")
    assert missing_parts(folder) == ["unet's weights"], "a link to a file that was deleted is none"


def test_a_missing_shard_is_named(folder: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(folder / "unet" / "diffusion_pytorch_model-00001-of-00002.safetensors")
    shards = [f"diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict(zip("ab", shards, strict=True))}), encoding="utf-8")
    assert missing_parts(folder) == [f"unet/{shards[1]}"]


def test_the_index_of_weights_that_were_not_taken_asks_for_nothing(folder: Path) -> None:
    index = folder / "unet" / "diffusion_pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "diffusion_pytorch_model-00001-of-00001.bin"}}))
    assert missing_parts(folder) == []


def test_a_part_that_is_none_does_not_count(folder: Path) -> None:
    parts = parts_of(read_index(folder))
    assert parts == ["unet", "scheduler"]
    assert not_driven(parts, "its X").startswith("its X has no vae; only")
    assert not_driven([*parts, "vae"], "its X") == ""


@pytest.mark.parametrize("text", ["", "[]"])
def test_an_index_that_is_none_is_told(folder: Path, text: str) -> None:
    (folder / "model_index.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError):
        missing_parts(folder)


def test_half_precision_alone_is_a_variant(folder: Path) -> None:
    plain = folder / "unet" / "diffusion_pytorch_model.safetensors"
    half = folder / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    half.write_text("h", encoding="utf-8")
    assert variant_of(folder) is None
    plain.unlink()
    assert variant_of(folder) == "fp16"
    assert missing_parts(folder) == []


def test_errors_of_libraries_that_are_not_there_are_none() -> None:
    assert library_errors("no.such.module.Error", "json.NoSuchError", "json.loads") == ()
    assert library_errors("json.JSONDecodeError") == (json.JSONDecodeError,)
