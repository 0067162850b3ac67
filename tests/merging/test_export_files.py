"""Exported models, read by programs that know nothing of masks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import maskunet as mu
from maskunet.errors import DataError, TargetError
from maskunet.maskers import Masker
from maskunet.merging import export
from maskunet.merging.original_layout import original_names
from maskunet.operators.implementation import using


def images(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        ["a b", "c d"],
        height=16,
        width=16,
        num_inference_steps=2,
        generator=[torch.Generator().manual_seed(i) for i in range(2)],
        output_type="np",
    ).images


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_exported_folder_gives_the_images_of_the_attached_masker(
    pipe: Any, masker: Masker, tmp_path: Path, dtype: torch.dtype
) -> None:
    pipe.save_pretrained(tmp_path / "base")
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "base", dtype=dtype)
    base = images(pipe)
    mu.attach(pipe, masker)
    with using("reference"):
        expected = images(pipe)
    mu.detach(pipe)
    mu.merge(pipe, masker)
    assert export(pipe, tmp_path / "out", base_model="user/model", masker="user/masker") == "pipeline"
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "out", dtype=dtype)
    assert np.array_equal(images(loaded), expected)
    assert not np.array_equal(base, expected)
    files = {path.suffix for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert files <= {".safetensors", ".json", ".txt", ".md"}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "base_model: user/model" in card
    assert "Masks of user/masker are merged into the U-Net of user/model at strength 1: " in card
    assert f"weights in {len(masker.network.layers)} layers are kept" in card
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "out"]


def test_paths_are_private_and_losses_are_stated(pipe: Any, tmp_path: Path) -> None:
    masker = mu.maskers.RandomMasks.for_unet(pipe, density=0.6)
    mu.merge(pipe, masker, 0.5, prompts=["ab"], num_inference_steps=2)
    export(pipe, tmp_path / "out", base_model="/home/me/secret/model", masker="/home/me/secret/masker")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "secret" not in card
    assert "Masks of masker are merged into the U-Net of model at strength 0.5: " in card
    assert "differ from those in" in card


def test_an_exported_file_of_the_u_net(
    pipe: Any, masker: Masker, predict: Callable[..., Tensor], tmp_path: Path
) -> None:
    mu.merge(pipe, masker)
    assert export(pipe, tmp_path / "new" / "unet.safetensors", base_model="user/model") == "U-Net"
    tensors = load_file(tmp_path / "new" / "unet.safetensors")
    assert tensors.keys() == pipe.unet.state_dict().keys()
    with safe_open(tmp_path / "new" / "unet.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"
        assert file.metadata()["maskunet"].startswith("Masks of a LowRankMasker are merged")
    # diffusers reads it beside the config of its U-Net.
    pipe.unet.save_config(tmp_path / "config" / "unet")
    loaded = UNet2DConditionModel.from_single_file(
        str(tmp_path / "new" / "unet.safetensors"), config=str(tmp_path / "config"), subfolder="unet"
    )
    assert torch.equal(predict(loaded.eval()), predict(pipe.unet))


def test_outputs_that_exist_or_cannot_be_written_are_refused(pipe: Any, masker: Masker, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"none are merged; call maskunet\.merge first"):
        export(pipe, tmp_path / "out")
    mu.merge(pipe, masker)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "file.safetensors").write_text("mine")
    (tmp_path / "plain").write_text("mine")
    for name in ("full", "file.safetensors", "plain", "plain/below", "plain/below.safetensors"):
        with pytest.raises(DataError, match=r"choose another|cannot be") as caught:
            export(pipe, tmp_path / name)
        assert "\n" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file.safetensors", "full", "mine.txt", "plain"]
    assert (tmp_path / "file.safetensors").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert export(pipe, tmp_path / "empty") == "pipeline"


@pytest.mark.parametrize("name", ["out", "out.safetensors"])
def test_an_export_that_fails_leaves_nothing(
    pipe: Any, masker: Masker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    mu.merge(pipe, masker)

    def fail(*args: Any, **options: Any) -> None:
        path = next(Path(a) for a in args if isinstance(a, str | Path))
        (path / "half" if path.is_dir() else path).write_text("half")
        raise OSError("no space left on device")

    monkeypatch.setattr(pipe.unet, "save_pretrained", fail)
    monkeypatch.setattr("maskunet.merging.export_files.save_file", fail)
    with pytest.raises(DataError, match="no space left on device"):
        export(pipe, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_lora_beside_the_weights_is_refused(pipe: Any, masker: Masker, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    pipe.unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"]))
    mu.merge(pipe, masker)
    with pytest.raises(TargetError, match="call unload_lora_weights first"):
        export(pipe, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


_RESNET = {
    "norm1.": "in_layers.0.",
    "conv1.": "in_layers.2.",
    "norm2.": "out_layers.0.",
    "conv2.": "out_layers.3.",
    "time_emb_proj.": "emb_layers.1.",
    "conv_shortcut.": "skip_connection.",
}
_OUTER = {
    "time_embedding.linear_1.": "time_embed.0.",
    "time_embedding.linear_2.": "time_embed.2.",
    "conv_in.": "input_blocks.0.0.",
    "conv_norm_out.": "out.0.",
    "conv_out.": "out.2.",
}


def original_name(name: str, layers: int) -> str:
    """The original layout's name of a parameter of a U-Net with as many resnets per block, as its authors number them."""
    for new, old in _OUTER.items():
        if name.startswith(new):
            return old + name.removeprefix(new)
    parts = name.split(".")
    if parts[0] == "mid_block":
        kind, i, rest = parts[1], int(parts[2]), ".".join(parts[3:])
        place = f"middle_block.{1 if kind == 'attentions' else 2 * i}."
    else:
        block, kind, i, rest = int(parts[1]), parts[2], int(parts[3]), ".".join(parts[4:])
        if parts[0] == "down_blocks":
            place = f"input_blocks.{(layers + 1) * block + i + 1}.{1 if kind == 'attentions' else 0}."
            if kind == "downsamplers":
                return f"input_blocks.{(layers + 1) * (block + 1)}.0.op.{rest.removeprefix('conv.')}"
        else:
            number = (layers + 1) * block + i
            place = f"output_blocks.{number}.{1 if kind == 'attentions' else 0}."
            if kind == "upsamplers":
                number = (layers + 1) * (block + 1) - 1
                has_attention = block > 0
                return f"output_blocks.{number}.{2 if has_attention else 1}.{rest}"
    if kind == "resnets":
        for new, old in _RESNET.items():
            rest = old + rest.removeprefix(new) if rest.startswith(new) else rest
    return place + rest


def write_original(pipe: Any, path: Path) -> dict[str, Tensor]:
    """Write a pipeline's U-Net as the original layout has it, with some other tensors beside it."""
    tensors = {
        f"model.diffusion_model.{original_name(name, 1)}": value.half()
        for name, value in pipe.unet.state_dict().items()
    }
    tensors["first_stage_model.encoder.conv_in.weight"] = torch.randn(3)
    tensors["alphas_cumprod"] = torch.randn(5).double()
    save_file(tensors, path, metadata={"format": "pt", "title": "mine"})
    return tensors


def test_a_checkpoint_of_the_original_layout_keeps_it(pipe: Any, masker: Masker, tmp_path: Path) -> None:
    before = write_original(pipe, tmp_path / "model.safetensors")
    names = original_names(before, dict(pipe.unet.config))
    assert names == {name: f"model.diffusion_model.{original_name(name, 1)}" for name in pipe.unet.state_dict()}
    weights = {layer.name: pipe.unet.get_submodule(layer.name).weight for layer in masker.network.layers}
    full = {name: weight.clone() for name, weight in weights.items()}
    mu.merge(pipe, masker)
    out = tmp_path / "out.safetensors"
    assert export(pipe, out, base_model=str(tmp_path / "model.safetensors")) == "checkpoint"
    after = load_file(out)
    assert after.keys() == before.keys()
    masked = {names[f"{name}.weight"]: full[name].half() * (weight != 0) for name, weight in weights.items()}
    for key, tensor in before.items():
        assert after[key].dtype == tensor.dtype
        assert torch.equal(after[key], masked.get(key, tensor))
    with safe_open(out, "pt") as file:
        assert file.metadata()["title"] == "mine"
        assert "maskunet" in file.metadata()
    averaged = before | {"model_ema.decay": torch.zeros(1)}
    save_file(averaged, tmp_path / "ema.safetensors")
    with pytest.raises(DataError, match="without averaged weights"):
        export(pipe, tmp_path / "other.safetensors", base_model=str(tmp_path / "ema.safetensors"))
    assert not (tmp_path / "other.safetensors").exists()
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["ema.safetensors", "model.safetensors", "out.safetensors"]
