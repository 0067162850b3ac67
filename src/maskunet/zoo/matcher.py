"""The network that reads a caption while it looks at a picture and says whether the picture shows it.

    h = BERT(caption; cross-attention to ViT(picture))      (B, L, D)
    logit = w · h[0] + b,      r = log sigma(logit)

as in BLIP's image-text matching, which ImageReward scores by. A caption's words meet patches, not one vector of the whole
picture, so what lies where and which thing has which colour is not lost before they are compared.
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

from ..errors import CheckpointError

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
        """Where it is."""
        return self.head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights."""
        return self.head.weight.dtype

    def look(self, pixel_values: Tensor) -> Tensor:
        """Return states (B, 1 + P, D) of normalised pictures (B, 3, side, side): the class token's, then each patch's."""
        found: Tensor = self.vision(pixel_values=pixel_values).last_hidden_state
        return found

    def read(self, seen: Tensor, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return logits (B,) and the states (B, L, D) of the captions' tokens: embedded, and after each layer.

        Args:
            seen: pictures as `look` returns them, (B, 1 + P, D).
            input_ids: token ids (B, L).
            attention_mask: (B, L), 1 = token, 0 = padding.
        """
        everything = torch.ones(seen.shape[:2], dtype=torch.long, device=seen.device)
        states: tuple[Tensor, ...] = self.text(
            input_ids=input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=seen,
            encoder_attention_mask=everything,
            output_hidden_states=True,
        ).hidden_states
        return self.head(states[-1][:, 0]).squeeze(-1), states

    def save_pretrained(self, folder: Path) -> None:
        """Write `config.json` and `model.safetensors`."""
        config = {name: part.to_diff_dict() for name, part in self.configs.items()}
        (folder / _CONFIG).write_text(json.dumps({"kind": "matcher"} | config, indent=1) + "\n")
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, folder / _WEIGHTS)

    @classmethod
    def from_pretrained(cls, folder: str | PathLike[str], dtype: torch.dtype = torch.float32) -> Self:
        """Read a folder that `save_pretrained` wrote.

        Raises:
            CheckpointError: not there, unreadable, or something else.
        """
        try:
            config: dict[str, Any] = json.loads((Path(folder) / _CONFIG).read_text())
            model = cls(CLIPVisionConfig(**config["vision"]), BlipTextConfig(**config["text"]))
            model.load_state_dict(load_file(Path(folder) / _WEIGHTS))
        except Exception as error:  # transformers and safetensors raise anything
            raise CheckpointError(
                f"expected a matcher (config.json with 'vision' and 'text', model.safetensors) in {folder}: {error}"
            ) from error
        return model.to(dtype).eval().requires_grad_(False)
