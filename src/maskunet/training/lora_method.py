"""Train a LoRA, through PEFT."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from ..errors import DataError, SettingError
from ..files import save_folder
from ..generators import kept_generators
from ..targets import Targets, describe
from .base import Method
from .restored import is_adapted, remove_empty_adapters

_ADAPTER = "maskunet_training"


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Keep PEFT from warning of adapters that the user has beside this one; they are restored after training."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a .peft_config. attribute|Adapter .* was active which is now")
        yield


class LoraMethod(Method):
    """Train a LoRA beside the target layers. Adapters that are active stay active and are not trained.

    Args:
        targets: which layers, as for masks.
        rank: rank of the update, >= 1; its scale is 1 (alpha = rank).

    Raises:
        SettingError: `rank` is out of range.

    Reference: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022.
    """

    name: ClassVar[str] = "lora"
    learning_rate: ClassVar[float] = 1e-4

    def __init__(self, targets: Targets = "decoder-attention", *, rank: int = 16) -> None:
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            raise SettingError(f"expected rank to be an integer >= 1, got {rank!r}")
        self.targets, self.rank = targets, rank
        # By adapter layer: the active adapters, and whether they are off.
        self._former: dict[Any, tuple[list[str], bool]] = {}

    def install(self, pipe: Any, seed: int) -> nn.Module:
        """Add the adapter to the U-Net; its weights are in float32, whatever the U-Net's dtype.

        Args:
            pipe: the pipeline.
            seed: seed of the adapter's start.

        Raises:
            DataError: PEFT is not installed, or adapters are fused.
            TargetError: the targets match nothing.
        """
        try:
            from peft import LoraConfig
        except ImportError as error:
            raise DataError("expected peft for LoRA, it is not installed; pip install 'maskunet[train]'") from error
        from diffusers.training_utils import cast_training_params

        layers = [layer.name for layer in describe(pipe.unet, self.targets).layers]
        adapted = [module for module in pipe.unet.modules() if is_adapted(module)]
        if any(getattr(module, "merged", False) for module in adapted):
            raise DataError(
                "expected adapters beside the weights for LoRA, got fused ones; call pipe.unfuse_lora(), or "
                "pipe.unload_lora_weights() to keep them in the weights"
            )
        self._former = {module: (list(module.active_adapters), module._disable_adapters) for module in adapted}
        with kept_generators(torch.get_default_device()) as seed_generators:
            seed_generators(seed)
            config = LoraConfig(r=self.rank, lora_alpha=self.rank, init_lora_weights="gaussian", target_modules=layers)
            with _without_warnings():
                pipe.unet.add_adapter(config, adapter_name=_ADAPTER)
        for module, (active, is_off) in self._former.items():
            module.enable_adapters(True)
            module.set_adapter([*([] if is_off else active), _ADAPTER])
        for name, parameter in pipe.unet.named_parameters():
            parameter.requires_grad_(_ADAPTER in name.split("."))
        cast_training_params(pipe.unet, dtype=torch.float32)
        return pipe.unet  # type: ignore[no-any-return]

    def remove(self, pipe: Any) -> None:
        """Remove the adapter; other adapters are as they were.

        Args:
            pipe: the pipeline.
        """
        if _ADAPTER not in getattr(pipe.unet, "peft_config", {}):
            return
        with _without_warnings():
            pipe.unet.delete_adapters(_ADAPTER)
        for module, (active, is_off) in self._former.items():
            module._active_adapter, module._disable_adapters = active, is_off
        self._former = {}
        if not getattr(pipe.unet, "peft_config", None):
            pipe.unet.unload_lora()  # no other adapter is left, so the layers lose PEFT's wrappers
        remove_empty_adapters(pipe.unet)

    @contextlib.contextmanager
    def base_model(self, pipe: Any) -> Iterator[None]:
        """Return a context without this adapter; others stay as they are.

        Args:
            pipe: the pipeline.
        """
        layers = [module for module in pipe.unet.modules() if _ADAPTER in getattr(module, "lora_A", {})]
        former = {module: module.active_adapters for module in layers}
        try:
            for module, active in former.items():  # `set_adapter` would also freeze the adapter, and thaw the others
                module._active_adapter = [name for name in active if name != _ADAPTER]
            yield
        finally:
            for module, active in former.items():
                module._active_adapter = active

    def start_batch(self, seeds: Sequence[int]) -> None:
        """Do nothing.

        Args:
            seeds: not used.
        """

    def set_eval(self) -> None:
        """Do nothing."""

    def save(self, pipe: Any, folder: Path, card: Mapping[str, Any]) -> Path:
        """Write `lora/pytorch_lora_weights.safetensors`, which `pipe.load_lora_weights` reads.

        Args:
            pipe: the pipeline.
            folder: the run's folder.
            card: not used.

        Raises:
            DataError: it cannot be written.
        """
        from diffusers.utils import convert_state_dict_to_diffusers
        from peft.utils import get_peft_model_state_dict

        path = folder / "lora"
        layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(pipe.unet, adapter_name=_ADAPTER))
        save_folder(path, lambda part: pipe.save_lora_weights(part, unet_lora_layers=layers), keep=("README.md",))
        return path

    @property
    def settings(self) -> dict[str, Any]:
        """Targets and rank."""
        return {"targets": self.targets, "rank": self.rank}
