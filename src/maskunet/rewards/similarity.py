"""PickScore and the plain CLIP score: a CLIP in transformers' format, used as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from transformers import CLIPTokenizer

from ..moving import outside_inference_mode
from ..pretrained import Source, load_tokenizer, tokenizer_source, unwrap_state_dict
from .clip import LAION_H14, ClipReward, build_clip, load_clip, read_preprocess
from .open_clip import is_open_clip
from .preprocess import Preprocess, resolve_preprocess


class PickScore(ClipReward):
    """PickScore: exp(logit_scale) times the cosine of a ViT-H/14 tuned on Pick-a-Pic; about 20.

    Reference: Kirstain et al., arXiv 2305.01569; https://github.com/yuvalkirstain/PickScore.
    """

    @classmethod
    def from_original(
        cls,
        config: Mapping[str, Any],
        state_dict: Mapping[str, Any],
        *,
        tokenizer: Any = None,
        preprocess: Preprocess | str = "original",
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """Build it from a checkpoint in transformers' layout.

        Args:
            config: config.json of the `CLIPModel`.
            state_dict: its tensors.
            tokenizer: a CLIP tokenizer; None if only `score_tokens` is used.
            preprocess: "original", "shared" (the authors' one crop) or your own `Preprocess`.
            dtype: dtype of the network.

        Raises:
            CheckpointError: tensors and config do not fit each other.
        """
        model = build_clip(config, unwrap_state_dict(state_dict, "pick-score"), "pick-score", torch.float32)
        original = Preprocess(model.config.vision_config.image_size, odd="down")
        return cls._from_model(model, tokenizer, resolve_preprocess(preprocess, original), dtype)

    @classmethod
    @outside_inference_mode()
    def from_pretrained(
        cls,
        source: Source = "yuvalkirstain/PickScore_v1",
        *,
        tokenizer: Any = None,
        preprocess: Preprocess | str = "original",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        revision: str | None = None,
        token: str | None = None,
    ) -> Self:
        """Load it from the hub or a folder.

        Args:
            source: hub id, or folder in transformers' format.
            tokenizer: a tokenizer, or its folder or hub id. If None: the checkpoint's own, else that of LAION's ViT-H/14,
                which the original uses.
            preprocess: see `from_original`.
            dtype: dtype of the network.
            device: device of the reward.
            revision: branch, tag or commit on the hub.
            token: access token for the hub.

        Raises:
            CheckpointError: missing, unreadable, or incomplete.
        """
        model = load_clip(source, "pick-score", revision=revision, token=token)
        tokenizer = load_tokenizer(CLIPTokenizer, tokenizer_source(source, tokenizer, LAION_H14))
        original = Preprocess(model.config.vision_config.image_size, odd="down")
        return cls._from_model(model, tokenizer, resolve_preprocess(preprocess, original), dtype).to(device)

    @classmethod
    def _from_model(cls, model: Any, tokenizer: Any, preprocess: Preprocess, dtype: torch.dtype) -> Self:
        # Computed before the cast: in half precision exp(4.6) is off by a percent.
        scale = float(model.logit_scale.float().exp())
        return cls("pick-score", model, tokenizer, preprocess, scale=scale).to(dtype=dtype)


class ClipScore(ClipReward):
    """CLIP score: the plain cosine, neither clipped at 0 nor times 100 as some report it.

    Reference: Hessel et al., arXiv 2104.08718, which has 2.5 max(cos, 0) and puts "A photo depicts" before the prompt.
    """

    @classmethod
    def from_original(
        cls,
        config: Mapping[str, Any] | None,
        state_dict: Mapping[str, Any],
        *,
        tokenizer: Any = None,
        preprocess: Preprocess | str = "original",
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """Build it from a checkpoint in transformers' or open_clip's layout.

        Args:
            config: config.json of the `CLIPModel`, or see `open_clip.read_open_clip`.
            state_dict: its tensors.
            tokenizer: a CLIP tokenizer; None if only `score_tokens` is used.
            preprocess: "original", "shared" (the authors' one crop) or your own `Preprocess`.
            dtype: dtype of the network.

        Raises:
            CheckpointError: tensors and config do not fit each other.
        """
        tensors = unwrap_state_dict(state_dict, "clip-score")
        model = build_clip(config, tensors, "clip-score", dtype)
        original = Preprocess(model.config.vision_config.image_size, odd="down")
        preprocess = resolve_preprocess(preprocess, original)
        return cls("clip-score", model, tokenizer, preprocess, ends_at_largest_id=is_open_clip(tensors))

    @classmethod
    @outside_inference_mode()
    def from_pretrained(
        cls,
        source: Source = "openai/clip-vit-large-patch14",
        *,
        tokenizer: Any = None,
        preprocess: Preprocess | str = "original",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        revision: str | None = None,
        token: str | None = None,
    ) -> Self:
        """Load a CLIP from the hub or a folder.

        Args:
            source: hub id, or folder in transformers' format; its own preprocessing is used.
            tokenizer: a tokenizer, or its folder or hub id; the checkpoint's own if None.
            preprocess: see `from_original`.
            dtype: dtype of the network.
            device: device of the reward.
            revision: branch, tag or commit on the hub.
            token: access token for the hub.

        Raises:
            CheckpointError: missing, unreadable, or incomplete.
        """
        model = load_clip(source, "clip-score", revision=revision, token=token)
        options = {"revision": revision or "main", "token": token} if tokenizer is None else {}
        tokenizer = load_tokenizer(CLIPTokenizer, source if tokenizer is None else tokenizer, **options)
        original = read_preprocess(source, model.config.vision_config.image_size, revision=revision, token=token)
        return cls("clip-score", model, tokenizer, resolve_preprocess(preprocess, original)).to(device, dtype)
