"""The matcher: a network that reads a caption beside an image and decides whether the image shows it.

    h = BERT(caption; cross-attention to ViT(image))        (B, L, D)
    logit = w · h[0] + b,      r = log sigma(logit)

as in BLIP's image-text matching, which ImageReward scores by. The caption's words attend to patches instead of one vector of
the image, so positions and the colour of each object are still there when they are compared.
"""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BlipTextConfig, BlipTextModel, CLIPVisionConfig, CLIPVisionModel

from ..errors import CheckpointError, first_line

_CONFIG, _WEIGHTS = "config.json", "model.safetensors"


class Matcher(nn.Module):
    """A vision transformer, a text encoder with cross-attention to its patches, and one logit.

    Args:
        vision: config of the vision tower.
        text: config of the text encoder; its `encoder_hidden_size` is the vision tower's width.
    """

    def __init__(self, vision: CLIPVisionConfig, text: BlipTextConfig) -> None:
        super().__init__()
        self.configs = {"vision": vision, "text": text}
        self.vision = CLIPVisionModel(vision)
        self.text = BlipTextModel(text, add_pooling_layer=False)
        self.head = nn.Linear(text.hidden_size, 1)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return self.head.weight.dtype

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """Return states (B, 1 + P, D): the class token's, then those of the P patches.

        Args:
            pixel_values: normalised images (B, 3, side, side).
        """
        states: Tensor = self.vision(pixel_values=pixel_values).last_hidden_state
        return states

    def read_captions(
        self, image_states: Tensor, input_ids: Tensor, attention_mask: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return logits (B,), and the states (B, L, D) of the captions' tokens: embedded, and after each layer.

        Args:
            image_states: (B, 1 + P, D), from `encode_images`.
            input_ids: token ids (B, L).
            attention_mask: (B, L), 1 = token, 0 = padding.
        """
        every_patch = torch.ones(image_states.shape[:2], dtype=torch.long, device=image_states.device)
        states: tuple[Tensor, ...] = self.text(
            input_ids=input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=image_states,
            encoder_attention_mask=every_patch,
            output_hidden_states=True,
        ).hidden_states
        return self.head(states[-1][:, 0]).squeeze(-1), states

    def save_pretrained(self, folder: Path) -> None:
        """Write `config.json` and `model.safetensors`.

        Args:
            folder: an existing folder.
        """
        config = {name: part.to_diff_dict() for name, part in self.configs.items()}
        (folder / _CONFIG).write_text(json.dumps({"kind": "matcher"} | config, indent=1) + "\n")
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, folder / _WEIGHTS)

    @classmethod
    def from_pretrained(cls, folder: str | PathLike[str], dtype: torch.dtype = torch.float32) -> Self:
        """Read a folder that `save_pretrained` wrote; the matcher is frozen.

        Args:
            folder: the folder.
            dtype: dtype of the weights.

        Raises:
            CheckpointError: missing, unreadable, or not a matcher.
        """
        try:
            config: dict[str, Any] = json.loads((Path(folder) / _CONFIG).read_text())
            model = cls(CLIPVisionConfig(**config["vision"]), BlipTextConfig(**config["text"]))
            model.load_state_dict(load_file(Path(folder) / _WEIGHTS))
        except Exception as error:  # transformers and safetensors raise anything
            raise CheckpointError(
                f"expected a matcher (config.json with 'vision' and 'text', model.safetensors) in {folder}, could not read "
                f"it: {first_line(error)}"
            ) from error
        return model.to(dtype).eval().requires_grad_(False)
