"""Feature spaces in which distances between sets of images are measured.

    clip:SOURCE       pooled features of a CLIP vision tower (CLIP score)
    cmmd              CMMD as published: CLIP ViT-L/14 at 336 pixels, read as its authors do; cmmd:SOURCE for a copy of it
    dinov2:SOURCE     the class token of a DINOv2 (FD-DINOv2)
    inception         Inception v3's 2048 features (FID as published), through torchmetrics and torch-fidelity
    shapes            pooled features of the bundled CLIP

SOURCE is a folder or a hub id of a model in transformers' format.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import hf_hub_download
from torch import Tensor

from ..errors import CheckpointError, DataError, SettingError, first_line
from ..pretrained import bundled_path
from .image_reader import Fit, centre_first, shorter_side_first
from .published import CMMD_CLIP, FEATURE_NAMES


class Features(ABC):
    """A feature space of images.

    A space that published figures read in its own way sets `resolution`, `fit` and `metrics`.

    Args:
        source: folder or hub id of the model.
        device: where it runs.
    """

    #: Pixels per side that images are read at; None for the resolution of the report.
    resolution: int | None = None
    #: Makes an image a square of that side.
    fit: Fit = staticmethod(shorter_side_first)
    #: The metrics of this space; all if None.
    metrics: tuple[str, ...] | None = None

    def __init__(self, source: str, device: torch.device | str) -> None:
        self.source, self.device = source, torch.device(device)

    @abstractmethod
    def __call__(self, images: Tensor) -> Tensor:
        """Return features (N, D), float32 on the CPU.

        Args:
            images: (N, 3, H, W) in [0, 1].
        """

    def texts(self, captions: Sequence[str]) -> Tensor | None:
        """Return features (N, D) of captions in the same space; None if the model has no text encoder.

        Args:
            captions: N captions.
        """
        return None


def _preprocessing(source: str) -> tuple[int, tuple[float, ...], tuple[float, ...]]:
    """Return side in pixels, mean and standard deviation of a model's input, from its `preprocessor_config.json`."""
    path = Path(source) / "preprocessor_config.json"
    if not path.is_file():
        path = Path(hf_hub_download(source, "preprocessor_config.json"))
    config = json.loads(path.read_text())
    size = config.get("crop_size") or config["size"]
    side = size if isinstance(size, int) else size.get("height") or size["shortest_edge"]
    return int(side), tuple(config["image_mean"]), tuple(config["image_std"])


class _Vision(Features):
    def __init__(self, source: str, device: torch.device | str) -> None:
        super().__init__(source, device)
        try:
            self.side, mean, std = _preprocessing(source)
            self.model: Any = self._load(source).to(self.device).eval()
        except Exception as error:  # hub, file and config errors of several libraries
            raise CheckpointError(
                f"expected a model in transformers' format in {source!r}, could not read it: {first_line(error)}"
            ) from error
        self.mean, self.std = (torch.tensor(v, device=self.device)[:, None, None] for v in (mean, std))

    @abstractmethod
    def _load(self, source: str) -> Any: ...

    def _prepare(self, images: Tensor) -> Tensor:
        """Resize the shorter side (bicubic, antialiased), crop the centre, normalise."""
        x = images.to(self.device, torch.float32)
        if min(x.shape[-2:]) != self.side or x.shape[-1] != x.shape[-2]:
            scale = self.side / min(x.shape[-2:])
            size = [max(self.side, round(d * scale)) for d in x.shape[-2:]]
            x = F.interpolate(x, size=size, mode="bicubic", antialias=True).clamp(0, 1)
            top, left = ((d - self.side) // 2 for d in x.shape[-2:])
            x = x[..., top : top + self.side, left : left + self.side]
        return (x - self.mean) / self.std


class ClipFeatures(_Vision):
    """Projected features of CLIP, of unit length, for images and captions."""

    def _load(self, source: str) -> Any:
        from transformers import AutoTokenizer, CLIPModel

        self.tokenizer = AutoTokenizer.from_pretrained(source)
        return CLIPModel.from_pretrained(source, dtype=torch.float32)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Return projected features (N, D) of unit length.

        Args:
            images: (N, 3, H, W) in [0, 1].
        """
        features = self.model.get_image_features(pixel_values=self._prepare(images)).pooler_output
        return F.normalize(features, dim=-1).cpu()

    @torch.inference_mode()
    def texts(self, captions: Sequence[str]) -> Tensor:
        """Return projected features (N, D) of captions, of unit length.

        Args:
            captions: N captions.
        """
        length = self.model.config.text_config.max_position_embeddings
        options = {"padding": "max_length", "truncation": True, "max_length": length, "return_tensors": "pt"}
        ids = self.tokenizer(list(captions), **options).to(self.device)
        features = self.model.get_text_features(**ids).pooler_output
        return F.normalize(features, dim=-1).cpu()


class CmmdFeatures(ClipFeatures):
    """CLIP's features for CMMD as published: the centre square of the file itself, resized to the network's input.

    Reference: Jayasumana et al., "Rethinking FID: Towards a Better Evaluation Metric for Image Generation", CVPR 2024, and
    its code (google-research/cmmd): Pillow's bicubic to 336 pixels, features of unit length, sigma 10, times 1000.
    """

    fit = staticmethod(centre_first)
    metrics = ("cmmd",)

    def __init__(self, source: str, device: torch.device | str) -> None:
        super().__init__(source or CMMD_CLIP, device)
        self.resolution = self.side


class Dinov2Features(_Vision):
    """The class token of DINOv2 after its last norm, as FD-DINOv2 takes it."""

    def _load(self, source: str) -> Any:
        from transformers import AutoModel

        return AutoModel.from_pretrained(source, dtype=torch.float32)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Return class tokens (N, D).

        Args:
            images: (N, 3, H, W) in [0, 1].
        """
        features: Tensor = self.model(pixel_values=self._prepare(images)).pooler_output
        return features.cpu()


class InceptionFeatures(Features):
    """Inception v3's pool features, as published FIDs take them."""

    def __init__(self, source: str, device: torch.device | str) -> None:
        super().__init__(source, device)
        try:
            from torchmetrics.image.fid import NoTrainInceptionV3

            self.model: Any = NoTrainInceptionV3(name="inception-v3-compat", features_list=["2048"]).to(self.device)
        except ImportError as error:
            raise DataError(
                "expected torchmetrics and torch-fidelity for Inception features, could not import them "
                f"({first_line(error)}); pip install 'maskunet[inception]'"
            ) from error
        except OSError as error:  # urllib's errors among them
            raise CheckpointError(
                "expected Inception's weights, which torch-fidelity downloads at first use, could not get them: "
                f"{first_line(error)}. Without a network, put weights-inception-2015-12-05-6726825d.pth of "
                f"github.com/toshas/torch-fidelity (release v0.2.0) into {torch.hub.get_dir()}/checkpoints"
            ) from error
        except RuntimeError as error:  # a torchvision that was built for another torch, or a damaged file
            raise DataError(
                "expected a torchvision from the same source as torch, and undamaged weights, for Inception features, got: "
                f"{first_line(error)}"
            ) from error

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Return pool features (N, 2048).

        Args:
            images: (N, 3, H, W) in [0, 1].
        """
        features: Tensor = self.model((images.to(self.device) * 255).round().byte())
        return features.cpu()


#: Feature spaces by kind; a new one is a class and a line here.
KINDS: dict[str, type[Features]] = {
    "clip": ClipFeatures,
    "cmmd": CmmdFeatures,
    "dinov2": Dinov2Features,
    "inception": InceptionFeatures,
}


def features_class(name: str) -> tuple[type[Features], str]:
    """Return the class and the source of a feature space, without loading it.

    Args:
        name: "clip:SOURCE", "cmmd", "cmmd:SOURCE", "dinov2:SOURCE", "inception" or "shapes".

    Raises:
        SettingError: an unknown name.
    """
    if name == "shapes":
        name = f"clip:{bundled_path('shapes-clip')}"
    kind, separator, source = name.partition(":")
    takes_none = kind in ("inception", "cmmd") and not separator
    if kind not in KINDS or not (takes_none or (source and kind != "inception")):
        raise SettingError(f"expected features {FEATURE_NAMES}, got {name!r}")
    return KINDS[kind], source


def load_features(name: str, device: torch.device | str = "cpu") -> Features:
    """Load a feature space by name.

    Args:
        name: "clip:SOURCE", "cmmd", "cmmd:SOURCE", "dinov2:SOURCE", "inception" or "shapes".
        device: where the model runs.

    Raises:
        SettingError: an unknown name.
        DataError: a missing extra.
        CheckpointError: the model cannot be read.
    """
    kind, source = features_class(name)
    return kind(source, device)
