"""Conditional maskers: one network per block, which reads the timestep and the sample, and a config."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, ClassVar, Self

import torch
from torch import nn

from ..errors import SettingError
from ..generators import kept_generators
from ..network import BlockSpec, Network
from ..settings import Targets
from ..targets import describe
from .base import Masker, module_key
from .config import ConditionalConfig
from .layer_mask import BlockInput, LayerMask


class ConditionalMasker(Masker):
    """A masker whose masks depend on the timestep, on the sample, on both, or (a `LowRankMasker`) on neither.

    Args:
        network: the blocks and layers that it masks.
        config: its settings; the defaults of its `config_class` if None.

    Raises:
        SettingError: the config is of another class.
    """

    settings_names: ClassVar[tuple[str, ...]] = ("config",)
    #: Class of the settings.
    config_class: ClassVar[type[ConditionalConfig]]

    def __init__(self, network: Network, config: Any = None) -> None:
        config = self._checked_config(config)
        super().__init__(network, config.tau)
        self.config = config
        self.blocks = nn.ModuleDict({module_key(b.name): self.build_block(b) for b in network.blocks})

    @abstractmethod
    def build_block(self, block: BlockSpec) -> nn.Module:
        """Return the network of one block, a module from `BlockInput` to masks by layer name.

        Args:
            block: the block.
        """

    @classmethod
    def _checked_config(cls, config: Any) -> Any:
        config = cls.config_class() if config is None else config
        if not isinstance(config, cls.config_class):
            raise SettingError(f"expected a {cls.config_class.__name__} for a {cls.__name__}, got {config!r:.80}")
        return config

    @classmethod
    def for_unet(cls, unet: nn.Module, config: Any = None, *, seed: int | None = None) -> Self:
        """Build an untrained masker for a U-Net.

        Args:
            unet: the U-Net or its pipeline.
            config: its settings, whose targets select the layers; the defaults if None.
            seed: seed of the initial weights; None draws from PyTorch's global generator.

        Raises:
            SettingError: the config is of another class.
            TargetError: the targets match nothing, or something that cannot be masked.
        """
        config = cls._checked_config(config)
        network = describe(unet, config.targets)
        if seed is None:
            return cls(network, config)
        with kept_generators(torch.get_default_device()) as seed_generators:
            seed_generators(seed)
            return cls(network, config)

    @property
    def settings(self) -> dict[str, Any]:
        """The config as JSON values."""
        return asdict(self.config)

    @classmethod
    def from_settings(cls, network: Network, settings: Mapping[str, Any]) -> Self:
        """Build a masker from saved settings.

        Args:
            network: the blocks and layers that it masks.
            settings: what `settings` returned.
        """
        config = cls.config_class(**settings)
        targets: Targets = config.targets
        return cls(network, config if isinstance(targets, str) else replace(config, targets=tuple(targets)))

    @property
    def conditions(self) -> tuple[str, ...]:
        """What masks depend on; see `Masker.conditions`."""
        flags = {"timestep": self.config.use_timestep, "sample": self.config.use_sample}
        return tuple(name for name, is_on in flags.items() if is_on)

    def block_masks(self, block: str, inputs: BlockInput) -> Mapping[str, LayerMask]:
        """Return the factored logits of a block's layers, per sample; see `Masker.block_masks`."""
        # The masker keeps its precision under autocast: rounding a logit near the threshold would flip its mask.
        with torch.autocast(inputs.hidden_states.device.type, enabled=False):
            masks: dict[str, LayerMask] = self.blocks[module_key(block)](inputs)
        return masks


def layer_key(layer: str, block: str) -> str:
    """Return a layer's name inside its block, without dots.

    Args:
        layer: dotted name of the layer.
        block: dotted name of its block.
    """
    return module_key(layer.removeprefix(block + "."))
