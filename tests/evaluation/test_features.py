"""CMMD as published; Inception's features through a network of the same interface, and an error for each missing part."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPModel

from maskunet.errors import CheckpointError, DataError, SettingError
from maskunet.evaluation import measure_images
from maskunet.evaluation.features import CmmdFeatures, features_class, load_features
from maskunet.evaluation.published import CMMD_CLIP


class Network(nn.Module):
    """The interface of torchmetrics' `NoTrainInceptionV3`; its features are the means of its input."""

    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str | None = None) -> None:
        super().__init__()
        assert (name, features_list, feature_extractor_weights_path) == ("inception-v3-compat", ["2048"], None)

    def forward(self, x: Tensor) -> Tensor:
        assert x.dtype == torch.uint8
        return x.float().mean((2, 3)).repeat(1, 683)[:, :2048]


def install_fake(monkeypatch: pytest.MonkeyPatch, network: Any) -> None:
    for name in ("torchmetrics", "torchmetrics.image", "torchmetrics.image.fid"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["torchmetrics.image.fid"].NoTrainInceptionV3 = network  # type: ignore[attr-defined]


def failing(error: Exception) -> Any:
    def build(**options: Any) -> Any:
        raise error

    return build


def test_images_reach_inception_as_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    install_fake(monkeypatch, Network)
    images = torch.tensor([0.0, 0.5, 1.0])[:, None, None, None].expand(3, 3, 16, 16)
    features = load_features("inception")(images)
    assert (features.shape, features.dtype, features.device.type) == ((3, 2048), torch.float32, "cpu")
    assert features[:, 0].tolist() == [0, 128, 255]
    assert load_features("inception").texts(["a"]) is None


@pytest.mark.parametrize(
    ("network", "kind", "message"),
    [
        (
            failing(ModuleNotFoundError("No module named 'torch_fidelity'")),
            DataError,
            r"pip install 'maskunet\[inc",
        ),
        (
            failing(URLError("Name or service not known")),
            CheckpointError,
            r"not known.*Without a network, put weights-ince",
        ),
        (
            failing(RuntimeError("operator torchvision::nms does not exist\nmore")),
            DataError,
            "source as torch.*exist$",
        ),
    ],
)
def test_a_missing_part_is_one_line(
    monkeypatch: pytest.MonkeyPatch, network: Any, kind: type[Exception], message: str
) -> None:
    install_fake(monkeypatch, network)
    with pytest.raises(kind, match=message) as caught:
        load_features("inception")
    assert "\n" not in str(caught.value)


def test_without_torchmetrics_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
    with pytest.raises(DataError, match=r"pip install 'maskunet\[inception\]'"):
        load_features("inception")


def published_cmmd(folder: Path, first: list[Path], second: list[Path]) -> float:
    """The authors' procedure, written out: centre square, Pillow's bicubic to the network's side, sigma 10, times 1000."""
    config = json.loads((folder / "preprocessor_config.json").read_text())
    network = CLIPModel.from_pretrained(folder)

    def embed(files: list[Path]) -> Tensor:
        rows = []
        for file in files:
            image = Image.open(file).convert("RGB")
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            square = image.crop((left, top, left + side, top + side)).resize((28, 28), Image.Resampling.BICUBIC)
            pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1).float() / 255
            mean, std = (torch.tensor(config[name])[:, None, None] for name in ("image_mean", "image_std"))
            with torch.no_grad():
                state = network.vision_model(pixel_values=((pixels - mean) / std)[None]).pooler_output
                embedding = network.visual_projection(state)[0]
            rows.append(embedding / embedding.norm())
        return torch.stack(rows).double()

    x, y = embed(first), embed(second)

    def kernel(a: Tensor, b: Tensor) -> float:
        return float(torch.exp(-(a[:, None] - b[None]).square().sum(-1) / (2 * 10**2)).mean())

    return 1000 * (kernel(x, x) + kernel(y, y) - 2 * kernel(x, y))


def test_cmmd_is_that_of_its_authors(clip_folder: Path, tmp_path: Path) -> None:
    sets = []
    for name, low in (("real", 0), ("generated", 120)):
        (tmp_path / name).mkdir()
        for i in range(5):
            values = np.random.default_rng(i + low).integers(low, 256, (40 + i, 90, 3), dtype=np.uint8)
            Image.fromarray(values).save(tmp_path / name / f"{i}.png")
        sets.append(sorted((tmp_path / name).iterdir()))
    expected = published_cmmd(clip_folder, sets[1], sets[0])
    options: dict[str, Any] = {"reference": tmp_path / "real", "progress": False}
    report = measure_images(tmp_path / "generated", f"cmmd:{clip_folder}", resolution=64, **options)
    ((name, values),) = report.metrics.items()
    assert values == {"n": 5, "n_reference": 5, "cmmd": pytest.approx(expected, rel=1e-4)}
    assert expected > 1e-3
    # A space that is read at the report's resolution gives another figure.
    other = measure_images(tmp_path / "generated", f"clip:{clip_folder}", resolution=64, **options)
    assert abs(next(iter(other.metrics.values()))["cmmd"] / expected - 1) > 1e-3


def test_cmmd_without_a_source_is_the_published_network() -> None:
    assert features_class("cmmd") == (CmmdFeatures, "")
    assert CMMD_CLIP == "openai/clip-vit-large-patch14-336"
    for name in ("cmmd:", "inception:", "inception:x", "clip", "clip:"):
        with pytest.raises(SettingError, match="clip:SOURCE, cmmd, dinov2:SOURCE, inception or shapes"):
            features_class(name)
