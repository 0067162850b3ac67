"""Inception's features through a network of the same interface, and one clear error for each missing part."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any
from urllib.error import URLError

import pytest
import torch
from torch import Tensor, nn

from maskunet.errors import CheckpointError, DataError
from maskunet.evaluation.features import load_features


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
