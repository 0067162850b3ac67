"""What generators of masks share: a config, a part for each block, and their construction from a seed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import nn

from ..errors import SettingError
from ..settings import Settings, Targets, flag, layer_targets, number
from ..targets import BlockSpec, Network, describe
from .base import BlockInput, LayerMask, Masker


@dataclass(frozen=True)
class ConditionalConfig(Settings):
    """What the configs of all conditional maskers hold.

    Args:
        targets: which layers are masked; a preset, a regular expression or a list of suffixes.
        initial_logit: every logit before training.
        tau: temperature of the straight-through gradient, > 0.
        use_timestep: condition on the timestep embedding.
        use_sample: condition on the features at the block's entry.

    Raises:
        SettingError: a setting is out of range, or both conditions are switched off.
    """

    targets: Targets = layer_targets("decoder-attention")
    initial_logit: float = number(1.0)
    tau: float = number(1.0, above=0)
    use_timestep: bool = flag(True)
    use_sample: bool = flag(True)

    def check(self) -> None:
        """Refuse a masker that depends on nothing."""
        if not (self.use_timestep or self.use_sample):
            raise SettingError(
                "expected use_timestep or use_sample to be on, both are off; use MaskTable for masks that depend on "
                "neither"
            )


class ConditionalMasker(Masker):
    """A masker whose masks depend on the timestep, on the sample, or on both.

    Args:
        network: the blocks and layers that it masks.
        config: its settings; a fresh one of its `config_class` if None.
    """

    settings_names: ClassVar[tuple[str, ...]] = ("config",)
    #: Frozen dataclass of the settings: `targets`, `tau`, `use_timestep`, `use_sample` and the masker's own.
    config_class: ClassVar[type[Any]]

    def __init__(self, network: Network, config: Any = None) -> None:
        config = config or self.config_class()
        super().__init__(network, config.tau)
        self.config = config
        self.blocks = nn.ModuleDict({b.name.replace(".", "__"): self.build_block(b) for b in network.blocks})

    @abstractmethod
    def build_block(self, block: BlockSpec) -> nn.Module:
        """Return the part for one block: a module from `BlockInput` to masks by layer name."""

    @classmethod
    def for_unet(cls, unet: nn.Module, config: Any = None, *, seed: int | None = None) -> Self:
        """Build a fresh one for a U-Net (or a pipeline).

        Args:
            unet: the U-Net or its pipeline.
            config: settings; its targets choose the layers.
            seed: seed of the random start; None draws from PyTorch's global generator.

        Raises:
            TargetError: the targets match nothing, or something that cannot be masked.
        """
        config = config or cls.config_class()
        network = describe(unet, config.targets)
        if seed is None:
            return cls(network, config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(network, config)

    @property
    def settings(self) -> dict[str, Any]:
        """Return the config as JSON values."""
        return asdict(self.config)

    @classmethod
    def from_settings(cls, network: Network, settings: Mapping[str, Any]) -> Self:
        """Build one from what `settings` gave."""
        config = cls.config_class(**settings)
        targets: Targets = config.targets
        return cls(network, config if isinstance(targets, str) else replace(config, targets=tuple(targets)))

    def block_masks(self, block: str, inputs: BlockInput) -> Mapping[str, LayerMask]:
        """Return the factored logits of a block's layers, per sample."""
        # The masker keeps its own precision inside an autocast region: a logit near the threshold decides a weight.
        with torch.autocast(inputs.hidden_states.device.type, enabled=False):
            masks: dict[str, LayerMask] = self.blocks[block.replace(".", "__")](inputs)
        return masks


def key_of(layer: str, block: str) -> str:
    """Return a layer's name inside its block, as a module's name may be."""
    return layer.removeprefix(block + ".").replace(".", "__")
