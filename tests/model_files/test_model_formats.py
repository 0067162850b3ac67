"""Models as people have them on disk: variants, pickles, single files, inpainting models, U-Nets alone."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import huggingface_hub
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.loaders import FromSingleFileMixin
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from torch import Tensor

import maskunet as mu
from maskunet.errors import CheckpointError, MaskUNetError, SettingError
from maskunet.maskers import RandomMasks
from maskunet.model_files import ModelSource, choose_variant
from maskunet.model_files.single_file import content_of
from maskunet.pipelines import load_pipeline
from original_layout import original_checkpoint, original_unet
from tiny_pipelines import unet as build_unet

Unet = UNet2DConditionModel
COMPONENTS = ("unet", "vae", "text_encoder")


@pytest.fixture
def folder(pipe: StableDiffusionPipeline, tmp_path: Path) -> Path:
    pipe.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def same(ours: Any, theirs: Any, *names: str) -> None:
    for name in names or COMPONENTS:
        a, b = (getattr(pipe, name).state_dict() for pipe in (ours, theirs))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in b), name


def refuse(error: type[MaskUNetError], message: str, *args: Any, **options: Any) -> None:
    with pytest.raises(error, match=message) as caught:
        load_pipeline(*args, **options)
    assert "\n" not in str(caught.value)


def rename(folder: Path, variant: str, components: tuple[str, ...] = COMPONENTS) -> None:
    """Give the weights of components a variant."""
    for name in components:
        for file in (folder / name).glob("*.safetensors"):
            file.rename(file.with_suffix(f".{variant}.safetensors"))


def other_unet(pipe: StableDiffusionPipeline) -> Unet:
    unet = copy.deepcopy(pipe.unet)
    with torch.no_grad():
        unet.conv_out.bias.add_(1)
    return unet


@pytest.mark.parametrize("components", [COMPONENTS, ("unet",)])
def test_the_only_variant_is_found(pipe: StableDiffusionPipeline, folder: Path, components: tuple[str, ...]) -> None:
    rename(folder, "fp16", components)
    same(load_pipeline(folder), pipe)
    same(load_pipeline(folder, variant="fp16"), pipe)


def test_a_variant_beside_the_plain_weights_is_chosen_by_name(pipe: StableDiffusionPipeline, folder: Path) -> None:
    base = copy.deepcopy(pipe.unet)
    with torch.no_grad():
        pipe.unet.conv_out.bias.add_(1)
    pipe.unet.save_pretrained(folder / "unet", variant="ema")
    same(load_pipeline(folder, variant="ema"), pipe)
    pipe.unet = base
    same(load_pipeline(folder), pipe)
    refuse(
        CheckpointError,
        r"the variant 'fp16' in '.*', there are ema; leave out variant \(--variant\)",
        folder,
        variant="fp16",
    )


def test_sharded_variants(pipe: StableDiffusionPipeline, folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    pipe.unet.save_pretrained(folder / "unet", variant="fp16", max_shard_size="100KB")
    assert len(list((folder / "unet").glob("*.fp16-00*.safetensors"))) > 1
    same(load_pipeline(folder), pipe)


def test_several_variants_without_plain_weights_need_a_name(folder: Path) -> None:
    rename(folder, "fp16")
    shutil.copy(next((folder / "unet").glob("*.fp16.*")), folder / "unet" / "diffusion_pytorch_model.bf16.safetensors")
    assert load_pipeline(folder).unet is not None  # the text encoder and the autoencoder have fp16 alone
    for name in ("vae", "text_encoder"):
        file = next((folder / name).glob("*.fp16.*"))
        shutil.copy(file, file.with_name(file.name.replace("fp16", "bf16")))
    refuse(CheckpointError, r"there are bf16, fp16 and no plain ones .* name one as variant \(--variant\)", folder)


def test_pickles_are_refused_with_how_to_convert_them(pipe: StableDiffusionPipeline, folder: Path) -> None:
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(pipe.vae.state_dict(), folder / "vae" / "diffusion_pytorch_model.bin")
    refuse(
        CheckpointError,
        r"got only the pickle vae/diffusion_pytorch_model\.bin.*convert it once: DiffusionPipeline\.from_pretrained\(",
        folder,
    )
    diffusers.DiffusionPipeline.from_pretrained(str(folder)).save_pretrained(folder)  # as told
    same(load_pipeline(folder), pipe)


@pytest.mark.parametrize(
    ("names", "variant"),
    [
        (["unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors"], None),
        (["unet/diffusion_pytorch_model.non_ema.safetensors", "v1-5-pruned.safetensors"], "non_ema"),
        (["text_encoder/model.fp16-00001-of-00002.safetensors", "vae/model.safetensors"], "fp16"),
        (["text_encoder/model-00001-of-00002.fp16.safetensors"], "fp16"),
        (["unet/diffusion_pytorch_model-00001-of-00002.safetensors", "unet/model.onnx", "unet/config.json"], None),
        (["unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.safetensors"], None),
    ],
)
def test_variants_by_name(names: list[str], variant: str | None) -> None:
    assert choose_variant(names, None, "x") == variant


def test_a_repository_with_one_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []

    def read(source: str, **options: Any) -> Any:
        calls.append((source, options))
        raise OSError("no connection")

    files = {"user/half": ["unet/diffusion_pytorch_model.fp16.safetensors"], "user/pickled": ["vae/model.bin"]}
    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", read)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda name, revision: files.get(name, []))
    for source, options in (("user/half", {}), ("user/unknown", {"variant": "bf16"})):
        refuse(CheckpointError, "the hub id .* is not: no connection", source, revision="v2", **options)
    assert [(name, options["variant"], options["revision"]) for name, options in calls] == [
        ("user/half", "fp16", "v2"),
        ("user/unknown", "bf16", "v2"),
    ]
    refuse(CheckpointError, "got only the pickle vae/model.bin", "user/pickled")


def test_options_that_a_source_does_not_take(folder: Path, tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    refuse(SettingError, r"revision \(--revision\) with a hub id as model, got 'v1' with '", folder, revision="v1")
    refuse(SettingError, r"config \(--config\) with a \.safetensors file as model", folder, config="x")
    refuse(SettingError, r"variant \(--variant\) with a folder or a hub id", tmp_path / "x.safetensors", variant="x")


def test_a_single_file_with_the_configs_of_a_folder(
    pipe: StableDiffusionPipeline, folder: Path, tmp_path: Path
) -> None:
    save_file(original_checkpoint(pipe), tmp_path / "x.safetensors")
    for component in COMPONENTS:  # configs and tokenizer alone
        for file in (folder / component).glob("*.safetensors"):
            file.unlink()
    loaded = load_pipeline(tmp_path / "x.safetensors", config=folder)
    assert type(loaded) is StableDiffusionPipeline
    same(loaded, pipe)
    refuse(CheckpointError, "config .* has none", tmp_path / "x.safetensors", config=tmp_path)


def test_a_single_file_gets_its_configs_from_the_hub(
    pipe: StableDiffusionPipeline, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(original_checkpoint(pipe), tmp_path / "x.safetensors")
    requested: list[str] = []

    def download(repository: str, allow_patterns: list[str]) -> str:
        requested.append(repository)
        if len(requested) == 1:
            raise LocalEntryNotFoundError("no connection\nmore")
        assert not any("safetensors" in pattern for pattern in allow_patterns)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    refuse(
        CheckpointError,
        r"expected the configs of 'stable-diffusion-v1-5/stable-diffusion-v1-5' for the file '.*', could not get them: no "
        r"connection\. Pass a folder in the diffusers format .*, as config \(--config\)\.$",
        tmp_path / "x.safetensors",
    )
    same(load_pipeline(tmp_path / "x.safetensors"), pipe)
    same(load_pipeline(tmp_path / "x.safetensors", config="user/mirror"), pipe)
    assert requested[1:] == ["stable-diffusion-v1-5/stable-diffusion-v1-5", "user/mirror"]


def inpainting(pipe: StableDiffusionPipeline) -> StableDiffusionPipeline:
    pipe.register_modules(unet=build_unet(in_channels=9))
    return pipe


def test_nine_channels_make_an_inpainting_pipeline(pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    inpainting(pipe).save_pretrained(tmp_path / "folder")
    save_file(original_checkpoint(pipe), tmp_path / "x.safetensors")
    for loaded in (
        load_pipeline(tmp_path / "folder"),
        load_pipeline(tmp_path / "x.safetensors", config=tmp_path / "folder"),
    ):
        assert type(loaded) is diffusers.StableDiffusionInpaintPipeline
        same(loaded, pipe)
        mu.attach(loaded, RandomMasks.for_unet(loaded.unet, density=0.5, seed=1))
    assert loaded.name_or_path != ""


def test_attaching_to_a_unet_of_nine_channels(predict: Callable[..., Tensor]) -> None:
    unet = build_unet(in_channels=9)
    masker = RandomMasks.for_unet(unet, density=0.5, seed=1)
    arguments = {"sample": torch.ones(2, 9, 8, 8), "timestep": 5, "encoder_hidden_states": torch.ones(2, 5, 24)}
    base = unet(**arguments).sample
    mu.attach(unet, masker)
    assert not torch.equal(unet(**arguments).sample, base)
    mu.detach(unet)
    assert torch.equal(unet(**arguments).sample, base)


def test_a_unet_over_a_base_model(pipe: StableDiffusionPipeline, folder: Path, tmp_path: Path) -> None:
    unet = other_unet(pipe)
    unet.save_pretrained(tmp_path / "run" / "unet")
    unet.save_pretrained(tmp_path / "half", variant="fp16")
    save_file(unet.state_dict(), tmp_path / "diffusers.safetensors")
    original = original_unet(unet)
    save_file(original, tmp_path / "bare.safetensors")
    save_file({f"model.diffusion_model.{k}": v for k, v in original.items()}, tmp_path / "original.safetensors")
    pipe.unet = unet
    save_file(original_checkpoint(pipe), tmp_path / "whole.safetensors")
    names = (
        "run",
        "run/unet",
        "half",
        "diffusers.safetensors",
        "bare.safetensors",
        "original.safetensors",
        "whole.safetensors",
    )
    for name in names:
        loaded = load_pipeline(folder, unet=tmp_path / name)
        same(loaded, pipe)
        assert not loaded.unet.training


def test_a_unet_of_nine_channels_over_a_base_model(
    pipe: StableDiffusionPipeline, folder: Path, tmp_path: Path
) -> None:
    save_file(inpainting(pipe).unet.state_dict(), tmp_path / "x.safetensors")
    loaded = load_pipeline(folder, unet=tmp_path / "x.safetensors")
    assert type(loaded) is diffusers.StableDiffusionInpaintPipeline
    same(loaded, pipe)


def test_a_unet_from_the_hub(pipe: StableDiffusionPipeline, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unet = other_unet(pipe)
    subfolders: list[str | None] = []

    def read(source: str, subfolder: str | None = None, **options: Any) -> Any:
        subfolders.append(subfolder)
        if subfolder is not None:
            raise OSError("no unet/ there")
        return unet, {"missing_keys": []}

    base = load_pipeline(folder)
    monkeypatch.setattr(Unet, "from_pretrained", read)
    monkeypatch.setattr("maskunet.pipelines._read", lambda *_: base)
    assert load_pipeline(folder, unet="user/name").unet is unet
    assert subfolders == ["unet", None]


def test_unets_that_do_not_fit(pipe: StableDiffusionPipeline, folder: Path, tmp_path: Path) -> None:
    tensors = pipe.unet.state_dict()
    files: dict[str, dict[str, Tensor]] = {
        "short": dict(list(tensors.items())[:-1]),
        "wide": {k: v.repeat(1, 2) if k.endswith("attn2.to_k.weight") else v for k, v in tensors.items()},
        "lora": {"lora_unet_x.lora_up.weight": torch.zeros(1)},
        "other": {"a.b": torch.zeros(1)},
    }
    for name, content in files.items():
        save_file({k: v.contiguous() for k, v in content.items()}, tmp_path / f"{name}.safetensors")
    torch.save(tensors, tmp_path / "x.bin")
    wide = Unet(**{**dict(pipe.unet.config), "cross_attention_dim": 48})
    wide.save_pretrained(tmp_path / "wide")
    pipe.unet.save_pretrained(tmp_path / "cut")
    save_file(files["short"], tmp_path / "cut" / "diffusion_pytorch_model.safetensors")
    messages = {
        "short.safetensors": r"a U-Net of the base model's kind in '.*', got another: Missing key\(s\).*conv_out",
        "wide.safetensors": r"got another: size mismatch for .*attn2\.to_k",
        "lora.safetensors": r"expected a U-Net in '.*', got a LoRA, which goes on a base model",
        "other.safetensors": r"got tensors such as 'a\.b'",
        "x.bin": r"expected a \.safetensors file as unet \(--unet\), got '.*x\.bin'; pickles are not read",
        "wide": r"expected a U-Net for this model \(cross_attention_dim 24\), '.*' has 48",
        "cut": r"expected a complete U-Net in '.*', 1 tensors are missing, such as 'conv_out",
        "model/vae": r"expected a UNet2DConditionModel in '.*vae', got AutoencoderKL",
        "missing": r"expected unet \(--unet\) to be a folder, a \.safetensors file or a hub id, '.*' is not there",
    }
    for name, message in messages.items():
        refuse(CheckpointError, message, folder, unet=tmp_path / name)


def test_files_that_are_no_checkpoint(pipe: StableDiffusionPipeline, folder: Path, tmp_path: Path) -> None:
    contents: dict[str, tuple[dict[str, Tensor], str]] = {
        "unet": (pipe.unet.state_dict(), r"got a U-Net alone; pass it as unet \(--unet\) with a base model"),
        "original": (original_unet(pipe.unet), r"got a U-Net alone; pass it as unet"),
        "lora": ({"lora_te_x.alpha": torch.zeros(1)}, "got a LoRA, which goes on a base model"),
        "vae": (pipe.vae.state_dict(), "got an autoencoder"),
        "flux": ({"double_blocks.0.x": torch.zeros(1)}, "got a transformer"),
    }
    for name, (tensors, message) in contents.items():
        path = tmp_path / f"{name}.safetensors"
        save_file({k: v.contiguous() for k, v in tensors.items()}, path)
        refuse(CheckpointError, message, path)
    refuse(CheckpointError, r"holds a U-Net alone; pass it as unet \(--unet\) with a base model", folder / "unet")
    refuse(CheckpointError, r"pass a unet/ alone as unet \(--unet\)", tmp_path)


def test_eight_channels_in_one_file(pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    pipe.register_modules(unet=build_unet(in_channels=8))
    save_file(original_checkpoint(pipe), tmp_path / "x.safetensors")
    refuse(CheckpointError, "got a U-Net of 8 input channels", tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("kind", "keys", "channels"),
    [
        ("StableDiffusionXLPipeline", ["conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias"], 4),
        (
            "StableDiffusionXLInpaintPipeline",
            ["conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias"],
            9,
        ),
        (
            "StableDiffusionXLImg2ImgPipeline",
            ["conditioner.embedders.0.model.transformer.resblocks.9.mlp.c_proj.bias"],
            4,
        ),
        ("StableDiffusionInpaintPipeline", ["cond_stage_model.x"], 9),
        ("StableDiffusionPipeline", ["cond_stage_model.x"], 4),
    ],
)
def test_the_pipeline_of_a_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, keys: list[str], channels: int
) -> None:
    tensors = {name: torch.zeros(1) for name in [*keys, "first_stage_model.x"]}
    tensors["model.diffusion_model.input_blocks.0.0.weight"] = torch.zeros(16, channels, 3, 3)
    save_file(tensors, tmp_path / "x.safetensors")
    used: list[str] = []

    def read(cls: type, path: str, **options: Any) -> Any:
        used.append(cls.__name__)
        raise ValueError("as far as this")

    monkeypatch.setattr(FromSingleFileMixin, "from_single_file", classmethod(read))
    refuse(CheckpointError, "is not: as far as this", tmp_path / "x.safetensors", config=folder)
    assert used == [kind]


def test_content_by_names() -> None:
    assert content_of([]) == "tensors such as 'none'"
    assert content_of(["base.transformer.lora_A.weight"]).startswith("a LoRA")


def test_a_source_names_its_options(folder: Path, pipe: StableDiffusionPipeline) -> None:
    rename(folder, "fp16")
    source = ModelSource(str(folder), variant="fp16", unet=None)
    assert json.loads(json.dumps({"model": source})) == {"model": f"{folder}, variant fp16"}
    assert copy.deepcopy(source).options == {"variant": "fp16"}
    same(load_pipeline(source), pipe)
    assert load_file(next((folder / "unet").glob("*.safetensors")))
    refuse(CheckpointError, "the variant 'no'", ModelSource(str(folder), variant="no"))
