"""Rewards on CLIP: how well an image agrees with its prompt.

    r(x, c) = s · cos( f(x), g(c) ),    f, g: (B, D) projected features of image and prompt,

with s = 1, except for PickScore, which publishes s = exp(logit_scale). Features of prompts do not depend on images, so
they are computed once and cached.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from ..errors import CheckpointError, first_line
from ..pretrained import Source, build_frozen, is_hub_id, locate, require_complete, sibling_file
from .base import Reward
from .open_clip import is_open_clip, read_open_clip
from .preprocess import CLIP_MEAN, CLIP_STD, Preprocess
from .prompt_tokenizer import PromptTokenizer

_CACHED_PROMPTS = 4096
_PREPROCESSOR = "preprocessor_config.json"
#: Hub id of the ViT-H/14 that HPSv2 and PickScore were tuned from, for its tokenizer.
LAION_H14 = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"


class ClipReward(Reward):
    """The scaled cosine of a CLIP's features of image and prompt.

    Args:
        name: name of the reward.
        model: a frozen `CLIPModel`.
        tokenizer: tokenizer of the prompts; None if only `score_tokens` is used.
        preprocess: maps images to the network's input.
        scale: factor of the cosine.
        ends_at_largest_id: take a prompt's features at its largest token id, as open_clip does. If False, at the config's
            eos_token_id, as transformers does.
    """

    def __init__(
        self,
        name: str,
        model: Any,
        tokenizer: Any,
        preprocess: Preprocess,
        *,
        scale: float = 1.0,
        ends_at_largest_id: bool = False,
    ) -> None:
        self.name, self.model, self.preprocess, self.scale = name, model, preprocess, scale
        self.ends_at_largest_id = ends_at_largest_id
        self.models = (model,)
        limit = model.config.text_config.max_position_embeddings
        # open_clip's tokenizer unescapes twice.
        clean = (lambda text: html.unescape(html.unescape(text))) if ends_at_largest_id else str
        self.tokenize = PromptTokenizer(tokenizer, limit, name, clean)
        self._cache: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return s · cos.

        Args:
            images: (B, 3, H, W), floating, in [0, 1].
            prompts: B prompts, one per image.

        Returns:
            Values (B,), on the images' device.
        """
        features = self.image_features(self.preprocess(images.to(self.model.device)))
        return (self.scale * (features * self._prompt_features(prompts)).sum(-1)).to(images.device)

    def score_tokens(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return s · cos (B,) of preprocessed images and tokenized prompts.

        Args:
            pixel_values: normalised images (B, 3, side, side).
            input_ids: token ids (B, L).
            attention_mask: (B, L), 1 = token, 0 = padding; all ones if None, which changes nothing, since padding comes
                after the end of the text.
        """
        features = self.image_features(pixel_values)
        return self.scale * (features * self.text_features(input_ids, attention_mask)).sum(-1)

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """Return features (B, D) of images, unit length, float32.

        Args:
            pixel_values: normalised images (B, 3, side, side).
        """
        values = pixel_values.to(self.model.device, self.model.dtype)
        pooled = self.model.vision_model(pixel_values=values).pooler_output
        return F.normalize(self.model.visual_projection(pooled).float(), dim=-1)

    def text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return features (B, D) of prompts, unit length, float32.

        Args:
            input_ids: token ids (B, L).
            attention_mask: (B, L), 1 = token, 0 = padding; all ones if None.
        """
        ids = input_ids.to(self.model.device)
        if self.ends_at_largest_id:
            states = self.model.text_model(input_ids=ids).last_hidden_state
            pooled = states[torch.arange(len(ids), device=ids.device), ids.argmax(-1)]
        else:
            mask = None if attention_mask is None else attention_mask.to(ids.device)
            pooled = self.model.text_model(input_ids=ids, attention_mask=mask).pooler_output
        return F.normalize(self.model.text_projection(pooled).float(), dim=-1)

    def _prompt_features(self, prompts: Sequence[str]) -> Tensor:
        placement = (self.model.device, self.model.dtype)
        rows = {prompt: self._cache.get((prompt, *placement)) for prompt in prompts}
        missing = [prompt for prompt, row in rows.items() if row is None]
        if missing:
            # Tensors made in inference mode could not take part in a later backward.
            device_type = self.model.device.type
            with torch.inference_mode(False), torch.no_grad(), torch.autocast(device_type, enabled=False):
                rows |= dict(zip(missing, self.text_features(*self.tokenize(missing)), strict=True))
            if len(self._cache) + len(missing) > _CACHED_PROMPTS:
                self._cache.clear()
            self._cache |= {(prompt, *placement): row for prompt in missing if (row := rows[prompt]) is not None}
        return torch.stack([row for prompt in prompts if (row := rows[prompt]) is not None])


def build_clip(config: Mapping[str, Any] | None, tensors: Mapping[str, Tensor], name: str, dtype: torch.dtype) -> Any:
    """Build a frozen `CLIPModel` from a state dict in transformers' or open_clip's layout.

    Args:
        config: config.json of a state dict in transformers' layout; see `read_open_clip` for open_clip's.
        tensors: the state dict.
        name: name of the reward, for errors.
        dtype: dtype of the network.

    Raises:
        CheckpointError: tensors and config do not fit each other.
    """
    if is_open_clip(tensors):
        clip_config, tensors = read_open_clip(config, tensors, name)
    elif config is None:
        raise CheckpointError(f"expected a config with {name}'s checkpoint in transformers' layout, got none")
    else:
        clip_config = CLIPConfig.from_dict(dict(config))
        # Older files carry this buffer.
        tensors = {key: value for key, value in tensors.items() if not key.endswith("position_ids")}
    return build_frozen(CLIPModel, _without_dropout(clip_config), tensors, name, dtype)


def load_clip(source: Source, name: str, *, revision: str | None = None, token: str | None = None) -> Any:
    """Load a frozen `CLIPModel` from a folder or the hub, in its checkpoint's own precision.

    Args:
        source: folder or hub id, in transformers' format.
        name: name of the reward, for errors.
        revision: branch, tag or commit on the hub.
        token: access token for the hub.

    Raises:
        CheckpointError: it cannot be read, or lacks weights.
    """
    text = str(Path(source).expanduser()) if not is_hub_id(source) else str(source)
    options: dict[str, Any] = {} if is_hub_id(source) else {"local_files_only": True}
    try:
        options |= {"revision": revision or "main", "token": token}
        config = _without_dropout(CLIPConfig.from_pretrained(text, **options))
        model, report = CLIPModel.from_pretrained(
            text, config=config, dtype="auto", output_loading_info=True, **options
        )
    except Exception as error:  # hub, file and config errors of several libraries
        raise CheckpointError(
            f"expected a CLIP in transformers' format for {name} in {text!r}, could not read it: {first_line(error)}"
        ) from error
    require_complete(report, name)
    return model.eval().requires_grad_(False)


def _without_dropout(config: Any) -> Any:
    # Gradient checkpointing needs training mode, where dropout would make the reward random.
    for tower in (config.text_config, config.vision_config):
        tower.attention_dropout = 0.0
    return config


def read_preprocess(source: Source, side: int, *, revision: str | None = None, token: str | None = None) -> Preprocess:
    """Return the preprocessing of a checkpoint in transformers' format; CLIP's own where its config has none.

    Args:
        source: folder or hub id.
        side: height and width of the network's input, in pixels.
        revision: branch, tag or commit on the hub.
        token: access token for the hub.
    """
    path = sibling_file(source, _PREPROCESSOR)
    if path is None and is_hub_id(source):
        path = locate(source, [_PREPROCESSOR], revision=revision, token=token)
    config = json.loads(path.read_text()) if path is not None else {}
    mean, std = (
        tuple(config.get(key, default)) for key, default in (("image_mean", CLIP_MEAN), ("image_std", CLIP_STD))
    )
    return Preprocess(side, mean, std, odd="down")
