"""HPSv2 and HPSv2.1: the cosine of a ViT-H/14 that was fine-tuned on human choices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from transformers import CLIPTokenizer

from ..errors import CheckpointError
from ..moving import outside_inference_mode
from ..pretrained import Source, load_tokenizer, locate, read_state_dict, tokenizer_source, unwrap_state_dict
from .clip import LAION_H14, ClipReward, build_clip
from .open_clip import is_open_clip
from .preprocess import Preprocess, resolve_preprocess

#: File of each version in the public repository.
FILES = {"2.0": "HPS_v2_compressed.pt", "2.1": "HPS_v2.1_compressed.pt"}


class HPSv2(ClipReward):
    """Human Preference Score v2 and v2.1: the cosine of a fine-tuned ViT-H/14.

    The original pads images to a square instead of cropping them, and resizes floats.

    Reference: Wu et al., arXiv 2306.09341; https://github.com/tgxs002/HPSv2.
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
        name: str = "hpsv2",
    ) -> Self:
        """Build it from a checkpoint in open_clip's layout.

        Args:
            config: see `open_clip.read_open_clip`; None for the public ones.
            state_dict: tensors by open_clip's keys, or a mapping with them under "state_dict".
            tokenizer: a CLIP tokenizer; None if only `score_tokens` is used.
            preprocess: "original", "shared" (the authors' one crop) or your own `Preprocess`.
            dtype: dtype of the network.
            name: name of the reward.

        Raises:
            CheckpointError: the tensors are not open_clip's, or do not fit the config.
        """
        tensors = unwrap_state_dict(state_dict, name)
        if not is_open_clip(tensors):
            raise CheckpointError(
                f"expected {name}'s checkpoint in open_clip's layout, got keys like {next(iter(tensors))!r}"
            )
        model = build_clip(config, tensors, name, dtype)
        original = Preprocess(model.config.vision_config.image_size, fit="pad", clamp=False)
        return cls(name, model, tokenizer, resolve_preprocess(preprocess, original), ends_at_largest_id=True)

    @classmethod
    @outside_inference_mode()
    def from_pretrained(
        cls,
        source: Source = "xswu/HPSv2",
        *,
        version: str = "2.0",
        config: Mapping[str, Any] | None = None,
        tokenizer: Any = None,
        preprocess: Preprocess | str = "original",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        revision: str | None = None,
        token: str | None = None,
    ) -> Self:
        """Load it from the hub, a folder or a file.

        Args:
            source: hub id, folder with `HPS_v2_compressed.pt` (or .safetensors), or the file itself.
            version: "2.0" or "2.1".
            config: see `from_original`.
            tokenizer: a tokenizer, or its folder or hub id. If None: the one next to the checkpoint, else that of LAION's
                ViT-H/14.
            preprocess: see `from_original`.
            dtype: dtype of the network.
            device: device of the reward.
            revision: branch, tag or commit on the hub.
            token: access token for the hub.

        Raises:
            CheckpointError: missing, unreadable, or not HPSv2.
        """
        if version not in FILES:
            raise CheckpointError(f"expected a version of HPSv2 among {', '.join(FILES)}, got {version!r}")
        file = FILES[version]
        names = (file, file.replace(".pt", ".safetensors"))
        tensors = read_state_dict(locate(source, names, revision=revision, token=token))
        tokenizer = load_tokenizer(CLIPTokenizer, tokenizer_source(source, tokenizer, LAION_H14))
        name = "hpsv2" if version == "2.0" else f"hpsv{version}"
        reward = cls.from_original(config, tensors, tokenizer=tokenizer, preprocess=preprocess, dtype=dtype, name=name)
        return reward.to(device)
