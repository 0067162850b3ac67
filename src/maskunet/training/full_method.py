"""Fine-tune the whole U-Net."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from ..errors import DataError, SettingError
from ..files import save_folder
from ..quantised import is_quantised
from .base import Method


class FullMethod(Method):
    """Fine-tune every weight of the U-Net.

    Args:
        dropout: probability of the U-Net's dropout layers while it trains, in [0, 1).

    Raises:
        SettingError: `dropout` is out of range.
    """

    name: ClassVar[str] = "full"
    learning_rate: ClassVar[float] = 1e-5

    def __init__(self, *, dropout: float = 0.0) -> None:
        if not 0 <= dropout < 1:
            raise SettingError(f"expected dropout to be in [0, 1), got {dropout}")
        self.dropout = dropout
        self._unet: Any = None
        self._original_dropout: dict[str, float] = {}

    def install(self, pipe: Any, seed: int) -> nn.Module:
        """Unfreeze the U-Net and set its dropout.

        Args:
            pipe: the pipeline.
            seed: not used.

        Raises:
            DataError: the U-Net is not in float32, or quantised, or has adapters.
        """
        self._unet = pipe.unet
        if adapters := list(getattr(self._unet, "peft_config", None) or ()):
            raise DataError(
                f"expected a U-Net without LoRA for full fine-tuning, got {', '.join(adapters)}; call "
                "pipe.unload_lora_weights(), after pipe.fuse_lora() to keep it in the weights"
            )
        if self._unet.dtype != torch.float32:
            raise DataError(
                f"expected a U-Net in float32 for full fine-tuning, got {self._unet.dtype}; load the pipeline with "
                "dtype=torch.float32 and use mixed_precision"
            )
        for name, module in self._unet.named_modules():
            if is_quantised(module):
                raise DataError(
                    f"expected plain weights to fine-tune, {name} has an {type(module.weight).__name__}; load the U-Net "
                    "without quantisation, or train masks or a lora"
                )
        self._unet.requires_grad_(True)
        for name, module in self._unet.named_modules():
            if isinstance(module, nn.Dropout):
                self._original_dropout[name], module.p = module.p, self.dropout
        return pipe.unet  # type: ignore[no-any-return]

    def remove(self, pipe: Any) -> None:
        """Restore the dropout of the U-Net, in evaluation mode; the trained weights stay.

        Args:
            pipe: the pipeline.
        """
        for name, probability in self._original_dropout.items():
            self._unet.get_submodule(name).p = probability
        if self._unet is not None:
            self._unet.eval()

    def start_batch(self, seeds: Sequence[int]) -> None:
        """Switch dropout on.

        Args:
            seeds: not used.
        """
        self._unet.train(self.dropout > 0)

    def set_eval(self) -> None:
        """Switch dropout off."""
        self._unet.eval()

    def save(self, pipe: Any, folder: Path, card: Mapping[str, Any]) -> Path:
        """Write `unet/` in the diffusers format.

        Args:
            pipe: the pipeline.
            folder: the run's folder.
            card: not used.

        Raises:
            DataError: it cannot be written.
        """
        path = folder / "unet"
        save_folder(path, pipe.unet.save_pretrained, keep=("README.md",))
        return path

    @property
    def settings(self) -> dict[str, Any]:
        """The dropout."""
        return {"dropout": self.dropout}
