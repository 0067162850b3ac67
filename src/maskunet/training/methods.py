"""The methods by name: masks, LoRA, full fine-tuning, and masks with LoRA."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from ..errors import SettingError
from ..maskers import LowRankMaskerConfig, Masker, TrainableConfig, build_masker
from .base import Method
from .full_method import FullMethod
from .lora_method import LoraMethod
from .mask_method import MaskMethod

METHODS: tuple[str, ...] = ("mask", "lora", "full", "mask+lora")


class MaskLoraMethod(MaskMethod):
    """Train a masker and a LoRA together. Masks act on the frozen weights, not on the LoRA beside them.

    Args:
        masker: the masker, made for the pipeline's U-Net.
        lora: the LoRA.
        gumbel: draw masks with Gumbel noise, as the paper does, or take them by the deterministic threshold.
        collect_density: collect the mean P(keep) of each batch, for a target density.
    """

    name: ClassVar[str] = "mask+lora"

    def __init__(
        self, masker: Masker, lora: LoraMethod, *, gumbel: bool = True, collect_density: bool = False
    ) -> None:
        super().__init__(masker, gumbel=gumbel, collect_density=collect_density)
        self.lora = lora

    def install(self, pipe: Any, seed: int) -> nn.Module:
        """Add the adapter, then attach the masker.

        Args:
            pipe: the pipeline.
            seed: seed of the adapter's start.
        """
        unet = self.lora.install(pipe, seed)
        return nn.ModuleList([super().install(pipe, seed), unet])

    def remove(self, pipe: Any) -> None:
        """Remove both.

        Args:
            pipe: the pipeline.
        """
        super().remove(pipe)
        self.lora.remove(pipe)

    @contextlib.contextmanager
    def base_model(self, pipe: Any) -> Iterator[None]:
        """Return a context without both.

        Args:
            pipe: the pipeline.
        """
        with super().base_model(pipe), self.lora.base_model(pipe):
            yield

    def save(self, pipe: Any, folder: Path, card: Mapping[str, Any]) -> Path:
        """Write `masker/` and `lora/`.

        Args:
            pipe: the pipeline.
            folder: the run's folder.
            card: base model, data set and recipe, for the masker's model card.
        """
        self.lora.save(pipe, folder, card)
        return super().save(pipe, folder, card)

    @property
    def settings(self) -> dict[str, Any]:
        """Both methods' settings."""
        return super().settings | {"lora": self.lora.settings}


def build_method(
    name: str,
    pipe: Any,
    mask: TrainableConfig | None = None,
    *,
    gumbel: bool = True,
    collect_density: bool = False,
    rank: int = 16,
    dropout: float = 0.0,
    seed: int = 0,
) -> Method:
    """Return a method by its name.

    Args:
        name: one of `METHODS`.
        pipe: the pipeline to train on.
        mask: settings of the masker, low-rank or the paper's; its targets are LoRA's as well. Low-rank if None.
        gumbel: draw masks with Gumbel noise.
        collect_density: collect P(keep) for a target density.
        rank: rank of LoRA, >= 1.
        dropout: dropout of full fine-tuning, in [0, 1).
        seed: seed of the masker's random start.

    Raises:
        SettingError: no method has that name, or a setting is out of range.
        TargetError: the targets match nothing, or something that cannot be masked.
    """
    if name not in METHODS:
        raise SettingError(f"expected a method ({', '.join(METHODS)}), got {name!r}")
    mask = mask or LowRankMaskerConfig()
    if name == "full":
        return FullMethod(dropout=dropout)
    if name == "lora":
        return LoraMethod(mask.targets, rank=rank)
    masker = build_masker(pipe.unet, mask, seed=seed)
    if name == "mask":
        return MaskMethod(masker, gumbel=gumbel, collect_density=collect_density)
    lora = LoraMethod(mask.targets, rank=rank)
    return MaskLoraMethod(masker, lora, gumbel=gumbel, collect_density=collect_density)
