"""Files of maskers: their content, loading, and the errors for broken ones."""

from __future__ import annotations

import json
import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

import maskunet as mu
from maskunet import targets
from maskunet.checkpoint import files as masker_files
from maskunet.errors import CheckpointError, TargetError
from maskunet.maskers import FixedMasks, MaskTable
from maskunet.pretrained import bundled_path

Unet = UNet2DConditionModel
FILES = ["README.md", "config.json", "masker.safetensors"]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refusal(source: Any, unet: Unet | None = None) -> str:
    """Return the one line with which a source is refused."""
    with pytest.raises(CheckpointError) as caught:
        mu.load(source, unet)
    message = str(caught.value)
    assert message.startswith("expected ")
    assert "\n" not in message
    return message


@pytest.fixture
def masker(sd1: Unet) -> mu.MaskGenerator:
    return mu.MaskGenerator.for_unet(sd1, mu.MaskGeneratorConfig(hidden=8, tau=0.5), seed=0)


@pytest.fixture
def saved(masker: mu.MaskGenerator, tmp_path: Path) -> Path:
    return masker.save_pretrained(tmp_path / "masker")


def test_files_of_a_masker(masker: mu.MaskGenerator, saved: Path) -> None:
    assert sorted(content(saved)) == FILES
    config = json.loads((saved / "config.json").read_text())
    assert config["format"] == masker_files.FORMAT
    assert config["masker"] == "MaskGenerator"
    assert (config["settings"]["hidden"], config["settings"]["tau"]) == (8, 0.5)
    assert targets.Network.from_json(config["network"]) == masker.network
    tensors = load_file(saved / "masker.safetensors")
    state = masker.state_dict()
    assert sorted(tensors) == sorted(state)
    assert all(torch.equal(tensors[key], state[key]) for key in state)


def test_the_model_card_names_the_base_model(masker: mu.MaskGenerator, tmp_path: Path) -> None:
    masker.save_pretrained(tmp_path, base_model="user/base")
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: maskunet\n")
    assert "base_model: user/base" in card
    assert f"{masker.network.weights:,} weights in 32 layers" in card
    assert json.loads((tmp_path / "config.json").read_text())["base_model"] == "user/base"


def test_an_existing_card_and_other_files_are_kept(masker: mu.MaskGenerator, saved: Path) -> None:
    (saved / "README.md").write_text("written by hand")
    (saved / "preview.png").write_bytes(b"png")
    masker.save_pretrained(saved)
    assert (saved / "README.md").read_text() == "written by hand"
    assert (saved / "preview.png").read_bytes() == b"png"


def test_saving_replaces_the_previous_masker(sd1: Unet, saved: Path) -> None:
    MaskTable.for_unet(sd1, initial_logit=2.0, samples=3).save_pretrained(saved)
    loaded = mu.load(str(saved), sd1)
    assert isinstance(loaded, MaskTable)
    assert loaded.settings == {"initial_logit": 2.0, "samples": 3, "tau": 1.0}
    assert sorted(content(saved)) == FILES


def test_load_without_a_model_and_to_a_device(saved: Path) -> None:
    assert mu.load(saved).settings["hidden"] == 8
    assert {p.device.type for p in mu.load(saved, device="meta").parameters()} == {"meta"}


def test_from_pretrained_reads_only_its_own_class(sd1: Unet, saved: Path, masker: mu.MaskGenerator) -> None:
    loaded = mu.MaskGenerator.from_pretrained(saved, sd1)
    assert loaded.config == masker.config
    with pytest.raises(
        CheckpointError, match=r"^expected a LowRankMasker in .*, got a MaskGenerator; use maskunet\.load$"
    ):
        mu.LowRankMasker.from_pretrained(saved, sd1)


#: Settings as earlier releases wrote them: another order, and lists for tuples.
EARLIER_SETTINGS: dict[str, dict[str, Any]] = {
    "LowRankMasker": {
        "targets": "decoder-attention",
        "initial_logit": 0.5,
        "tau": 2.0,
        "rank": 3,
        "hidden": 8,
        "use_timestep": False,
        "use_sample": True,
    },
    "MaskGenerator": {
        "targets": ["to_q", "attn2.to_k"],
        "initial_logit": 0.3,
        "tau": 1.0,
        "hidden": 8,
        "reduction": 2,
        "use_timestep": True,
        "use_sample": False,
    },
}


@pytest.mark.parametrize("name", EARLIER_SETTINGS)
def test_configs_of_earlier_releases_load(sd1: Unet, tmp_path: Path, name: str) -> None:
    settings = EARLIER_SETTINGS[name]
    masker_class = getattr(mu, name)
    masker = masker_class.from_settings(targets.describe(sd1, settings["targets"]), settings)
    folder = masker.save_pretrained(tmp_path)
    config = {"format": 1, "masker": name, "settings": settings, "base_model": None}
    (folder / "config.json").write_text(json.dumps(config | {"network": masker.network.to_json()}))
    loaded = mu.load(folder, sd1)
    assert type(loaded) is masker_class
    expected = settings["targets"] if isinstance(settings["targets"], str) else tuple(settings["targets"])
    assert loaded.settings == settings | {"targets": expected}
    assert all(torch.equal(value, masker.state_dict()[key]) for key, value in loaded.state_dict().items())


def test_the_bundled_maskers_config_loads() -> None:
    config = json.loads((bundled_path("shapes-masker") / "config.json").read_text())
    masker = mu.load("shapes-masker")
    assert (type(masker).__name__, masker.settings) == ("MaskGenerator", config["settings"])
    assert masker.network.to_json() == json.loads(json.dumps(config["network"]), object_hook=_tuples)


def _tuples(value: dict[str, Any]) -> dict[str, Any]:
    """JSON has no tuples."""
    return {key: tuple(v) if isinstance(v, list) else v for key, v in value.items()}


def test_list_targets_survive(sd1: Unet, tmp_path: Path) -> None:
    masker = mu.MaskGenerator.for_unet(sd1, mu.MaskGeneratorConfig(targets=("to_q", "attn2.to_k"), hidden=4))
    loaded = mu.load(masker.save_pretrained(tmp_path), sd1)
    assert loaded.config == masker.config  # type: ignore[attr-defined]


def test_fixed_masks_take_one_bit_per_weight(sd1: Unet, tmp_path: Path) -> None:
    layers = targets.describe(sd1).layers
    generator = torch.Generator().manual_seed(0)
    masks = {x.name: torch.rand((5, *x.shape), generator=generator) < 0.5 for x in layers}
    FixedMasks(masks).save_pretrained(tmp_path)
    weights = 5 * sum(layer.weights for layer in layers)
    stored = load_file(tmp_path / "masker.safetensors")
    assert {t.dtype for t in stored.values()} == {torch.uint8}
    assert sum(t.numel() for t in stored.values()) == weights // 8
    overhead = (tmp_path / "masker.safetensors").stat().st_size - weights // 8
    assert overhead < 200 * len(layers)
    loaded = mu.load(tmp_path, sd1)
    assert all(torch.equal(loaded[name], mask) for name, mask in masks.items())  # type: ignore[index]


def test_no_folder_and_no_hub_id(tmp_path: Path) -> None:
    assert "which does not exist" in refusal(tmp_path / "missing")
    assert "or a hub id like 'user/name'" in refusal("./missing")


@pytest.mark.parametrize("source", [3, None, 2.5, ["user/name"]])
def test_a_source_of_the_wrong_type(source: Any) -> None:
    assert f"a hub id or a bundled name, got {type(source).__name__}" in refusal(source)


def test_a_file_instead_of_a_folder(saved: Path) -> None:
    assert "which is a file" in refusal(saved / "config.json")


def test_a_diffusers_model_is_named_as_such(sd1: Unet, tmp_path: Path) -> None:
    sd1.save_pretrained(tmp_path)
    message = refusal(tmp_path, sd1)
    assert "got 'UNet2DConditionModel'" in message
    for name in ("FixedMasks", "LowRankMasker", "MaskGenerator", "MaskSchedule", "MaskTable", "RandomMasks"):
        assert name in message


@pytest.mark.parametrize("text", [None, "", "{", "[1]", "null", "\xff\xfe", '{"masker": "Other"}', '{"masker": []}'])
def test_a_config_that_is_missing_or_not_a_maskers(saved: Path, text: str | None) -> None:
    path = saved / "config.json"
    if text is None:
        path.unlink()
    else:
        path.write_bytes(text.encode("latin-1"))
    assert "config.json" in refusal(saved)


@pytest.mark.parametrize("masker_name", ["MaskGenerator", "MaskerOfTheFuture"])
def test_a_format_of_the_future(saved: Path, masker_name: str) -> None:
    edit_config(saved, format=masker_files.FORMAT + 1, masker=masker_name)
    message = refusal(saved)
    assert "expected format 1" in message
    assert "got 2; upgrade maskunet" in message


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def cut_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def pickle(path: Path) -> None:
    path.write_bytes(b"\x80\x04pickle")


@pytest.mark.parametrize("damage", [truncate, cut_header, empty, pickle, Path.unlink])
def test_weights_that_are_corrupt_or_missing(saved: Path, sd1: Unet, damage: Callable[[Path], Any]) -> None:
    damage(saved / "masker.safetensors")
    message = refusal(saved, sd1)
    assert "masker.safetensors to be a safetensors file, could not read it" in message


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_tensors_that_do_not_fit(saved: Path, sd1: Unet, change: str) -> None:
    path = saved / "masker.safetensors"
    tensors = load_file(path)
    key = sorted(tensors)[0]
    if change == "missing":
        del tensors[key]
    elif change == "unexpected":
        tensors["extra"] = torch.zeros(2)
        key = "extra"
    else:
        tensors[key] = tensors[key][:1].clone()
    save_file(tensors, path)
    message = refusal(saved, sd1)
    assert "to describe the same MaskGenerator, they do not" in message
    assert key in message


def test_fixed_masks_that_lack_a_layer(sd1: Unet, tmp_path: Path) -> None:
    layers = targets.describe(sd1).layers
    FixedMasks({x.name: torch.ones(x.shape) for x in layers}).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "masker.safetensors")
    del tensors[layers[0].name]
    save_file(tensors, tmp_path / "masker.safetensors")
    assert f"a mask for {layers[0].name}; it is missing" in refusal(tmp_path, sd1)
    tensors[layers[0].name] = torch.zeros(1, dtype=torch.uint8)
    save_file(tensors, tmp_path / "masker.safetensors")
    assert "bytes (uint8) of masks for up_blocks" in refusal(tmp_path, sd1)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"network": 5}, "expected a list of blocks with their layers"),
        ({"network": None}, "expected a list of blocks with their layers"),
        ({"settings": None}, "to describe the same MaskGenerator, they do not"),
        ({"settings": {"tau": -1.0}}, "they do not: expected tau to be a finite number > 0, got -1.0"),
        ({"settings": {"warmth": 1}}, "they do not: .*unexpected keyword argument 'warmth'"),
    ],
)
def test_a_config_with_wrong_values(saved: Path, sd1: Unet, changes: dict[str, Any], reason: str) -> None:
    edit_config(saved, **changes)
    assert re.search(reason, refusal(saved, sd1))


def test_another_network_is_refused_by_layer(saved: Path, make_unet: Callable[[str], Unet]) -> None:
    with pytest.raises(TargetError, match=r"made for another network: up_blocks\.1\..*is not in this U-Net") as caught:
        mu.load(saved, make_unet("sdxl"))
    assert "\n" not in str(caught.value)


def fail(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_failing_disk_leaves_the_previous_files(sd1: Unet, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = content(saved)
    monkeypatch.setattr(masker_files, "save_file", fail)
    with pytest.raises(CheckpointError, match=r"folder that can be written, .* cannot be: .*No space left"):
        MaskTable.for_unet(sd1).save_pretrained(saved)
    assert content(saved) == before


def test_a_disk_that_is_really_full(sd1: Unet, saved: Path) -> None:
    before = content(saved)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(CheckpointError, match=r"folder that can be written, .* cannot be: .*File too large"):
            MaskTable.for_unet(sd1).save_pretrained(saved)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert content(saved) == before


def test_a_disk_that_fails_between_files_leaves_the_old_masker(
    sd1: Unet, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(saved)
    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(CheckpointError, match="No space left"):
        MaskTable.for_unet(sd1).save_pretrained(saved)
    monkeypatch.undo()
    assert content(saved) == before
    assert isinstance(mu.load(saved, sd1), mu.MaskGenerator)


def test_a_folder_that_is_a_file(masker: mu.MaskGenerator, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("x")
    with pytest.raises(CheckpointError, match="folder that can be written"):
        masker.save_pretrained(tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "x"
