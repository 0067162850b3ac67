"""LAION's aesthetic predictor: linear layers on the unit-length image features of CLIP ViT-L/14; about 1 to 10."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..moving import outside_inference_mode
from ..pretrained import Source, locate, read_state_dict, unwrap_state_dict
from .base import Reward
from .clip import build_clip, load_clip
from .head import linear_head
from .preprocess import Preprocess, resolve_preprocess

#: Published file names of the predictor's head.
FILES = ("aesthetic-model.pth", "sac+logos+ava1-l14-linearMSE.pth", "aesthetic-model.safetensors")
_NAME = "aesthetic"


class AestheticScore(Reward):
    """How much people like an image; the prompt is ignored.

    Args:
        model: the frozen `CLIPModel` whose image tower the head was trained on.
        head: maps its features to one value, float32.
        preprocess: maps images to the network's input.

    Reference: https://github.com/christophschuhmann/improved-aesthetic-predictor.
    """

    name = _NAME

    def __init__(self, model: Any, head: nn.Module, preprocess: Preprocess) -> None:
        self.model, self.head, self.preprocess = model, head, preprocess
        self.models, self.heads = (model,), (head,)

    @classmethod
    def from_original(
        cls,
        config: Mapping[str, Any] | None,
        state_dict: Mapping[str, Any],
        head_state_dict: Mapping[str, Any],
        *,
        preprocess: Preprocess | str = "original",
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """Build it from the checkpoints of its CLIP and its head.

        Args:
            config: config.json of the `CLIPModel`, or see `open_clip.read_open_clip`.
            state_dict: the CLIP's tensors, in transformers' or open_clip's layout.
            head_state_dict: the head's tensors, `layers.N.weight` and `layers.N.bias`.
            preprocess: "original", "shared" (the authors' one crop) or your own `Preprocess`.
            dtype: dtype of the CLIP; the head stays in float32.

        Raises:
            CheckpointError: tensors and config do not fit each other.
        """
        model = build_clip(config, unwrap_state_dict(state_dict, _NAME), _NAME, dtype)
        head = linear_head(unwrap_state_dict(head_state_dict, _NAME), model.config.projection_dim, _NAME)
        return cls(
            _image_tower(model),
            head,
            resolve_preprocess(preprocess, Preprocess(model.config.vision_config.image_size)),
        )

    @classmethod
    @outside_inference_mode()
    def from_pretrained(
        cls,
        source: Source = "trl-lib/ddpo-aesthetic-predictor",
        *,
        clip: Source = "openai/clip-vit-large-patch14",
        preprocess: Preprocess | str = "original",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        revision: str | None = None,
        token: str | None = None,
    ) -> Self:
        """Load head and CLIP from the hub, folders or files.

        Args:
            source: the head: hub id, folder with one of `FILES`, or the file itself.
            clip: the CLIP it was trained on: hub id or folder.
            preprocess: see `from_original`.
            dtype: dtype of the CLIP; the head stays in float32.
            device: device of the reward.
            revision: branch, tag or commit of the head on the hub.
            token: access token for the hub.

        Raises:
            CheckpointError: missing, unreadable, or made for another CLIP.
        """
        tensors = read_state_dict(locate(source, FILES, revision=revision, token=token))
        model = load_clip(clip, _NAME, token=token)
        head = linear_head(tensors, model.config.projection_dim, _NAME)
        original = Preprocess(model.config.vision_config.image_size)
        return cls(_image_tower(model), head, resolve_preprocess(preprocess, original)).to(device, dtype)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the predicted ratings.

        Args:
            images: (B, 3, H, W), floating, in [0, 1].
            prompts: ignored.

        Returns:
            Ratings (B,), on the images' device.
        """
        return self.score_pixels(self.preprocess(images.to(self.model.device))).to(images.device)

    def score_pixels(self, pixel_values: Tensor) -> Tensor:
        """Return the predicted ratings (B,) of preprocessed images.

        Args:
            pixel_values: normalised images (B, 3, side, side).
        """
        values = pixel_values.to(self.model.device, self.model.dtype)
        features = self.model.visual_projection(self.model.vision_model(pixel_values=values).pooler_output)
        with torch.autocast(features.device.type, enabled=False):
            rating: Tensor = self.head(F.normalize(features.float(), dim=-1))
        return rating.squeeze(-1)


def _image_tower(model: Any) -> Any:
    # The text tower is a third of CLIP ViT-L/14, and no text is read.
    del model.text_model, model.text_projection
    return model
