"""The one seam of the library: a masker answers, for one block at one step, the masks of each target layer.

A masker returns a `LayerMask` for every masked layer of the block, in whatever form is cheapest: free logits, the
factors of a low-rank product, or given masks. The hooks of `maskunet.attach` hand it to the operator, which asks for
the mask when the layer runs. Trainer, search, analysis and generation differ only in which masker they attach.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from .. import checkpoint
from ..errors import CheckpointError, SettingError, TargetError
from ..operators import masked_conv2d, masked_linear
from ..targets import LayerSpec, Network


@dataclass(frozen=True)
class BlockInput:
    """What a block is called with.

    Args:
        hidden_states: x_b (B, C_x, h, w).
        skip: s_b (B, C_s, h, w), the skip that the block's first resnet consumes; None outside the decoder.
        temb: timestep embedding e (B, D).
        timestep: the U-Net's timestep, a number or a tensor.
    """

    hidden_states: Tensor
    skip: Tensor | None
    temb: Tensor
    timestep: Any = None


@dataclass(frozen=True)
class Draw:
    """How logits become masks during one call of the U-Net.

    Args:
        tau: temperature of the straight-through gradient.
        seed: seed of the Gumbel noise of this call, shared by the batch, or one for each of its rows; None for the
            deterministic threshold.
        noise: given Gumbel noise by layer name, used instead of drawn noise.
    """

    tau: float = 1.0
    seed: int | tuple[int, ...] | None = None
    noise: Mapping[str, Tensor] | None = None


class LayerMask(ABC):
    """The mask of one layer during one call of the U-Net, in some form."""

    @abstractmethod
    def logits(self) -> Tensor | None:
        """Return logits (*weight.shape) or (B, *weight.shape); None where the form has no logits."""

    @abstractmethod
    def mask(self, layer: LayerSpec, draw: Draw, batch: int) -> Tensor:
        """Return the mask, (*weight.shape) or (M, *weight.shape) where M divides `batch`."""

    def run(self, layer: LayerSpec, module: nn.Module, x: Tensor, draw: Draw, batch: int) -> Tensor:
        """Return the output of `module` for inputs x; forms that need not hold their mask whole override it."""
        return self.apply(layer, module, x, self.mask(layer, draw, batch))

    def apply(self, layer: LayerSpec, module: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
        """Return the output of `module` for inputs x under a mask."""
        if isinstance(module, nn.Linear):
            return masked_linear(x, module.weight, module.bias, mask)
        assert isinstance(module, nn.Conv2d)
        if module.padding_mode != "zeros":
            raise TargetError(f"expected zero padding, {layer.name} pads with {module.padding_mode!r}")
        options = (module.stride, module.padding, module.dilation, module.groups)
        return masked_conv2d(x, module.weight, module.bias, mask, *options)  # type: ignore[arg-type]


class Masker(nn.Module, ABC):
    """Base of all maskers.

    Args:
        network: the blocks and layers that it masks.
        tau: temperature of the straight-through gradient.

    A masker starts in evaluation mode, in which masks are deterministic unless `attach` is given a seed. In training
    mode (`masker.train()`) they are drawn with Gumbel noise, per sample and anew at every call.
    """

    #: Constructor arguments beside the network that `save_pretrained` keeps.
    settings_names: ClassVar[tuple[str, ...]] = ("tau",)
    #: Sets of masks that are held, where their number is fixed: row r of a batch takes set r mod M.
    sample_counts: frozenset[int] = frozenset()
    #: Whether its masks cannot be drawn with noise.
    deterministic: ClassVar[bool] = False
    #: "conditional" where only the second half of a guided batch is masked.
    guided_half: str | None = None

    def __init__(self, network: Network, tau: float = 1.0) -> None:
        super().__init__()
        if not tau > 0:
            raise SettingError(f"expected a temperature tau > 0, got {tau}")
        self.network = network
        self.tau = tau
        self.training = False

    @property
    def settings(self) -> dict[str, Any]:
        """Return the constructor arguments beside the network, as JSON values."""
        return {name: getattr(self, name) for name in self.settings_names}

    @classmethod
    def from_settings(cls, network: Network, settings: Mapping[str, Any]) -> Masker:
        """Build a masker from what `settings` gave."""
        return cls(network, **settings)

    @abstractmethod
    def block_masks(self, block: str, inputs: BlockInput) -> Mapping[str, LayerMask]:
        """Return the mask of every masked layer of a block.

        Args:
            block: name of the block, as "up_blocks.1".
            inputs: what the block is called with.

        Returns:
            One `LayerMask` for each layer of the block, by layer name.
        """

    def check_prompts(self, count: int) -> None:
        """Check that a number of prompts can be shared out among the sets of masks.

        Raises:
            TargetError: it is no multiple of theirs.
        """
        for sets in sorted(self.sample_counts):
            if count % sets:
                raise TargetError(
                    f"expected a multiple of {sets} prompts for {sets} sets of masks, one for each, got {count}; pass as "
                    "many, or attach a single set for all (of a MaskSchedule: select or merge)"
                )

    def tensors(self) -> dict[str, Tensor]:
        """Return what `save_pretrained` writes; the state dict unless a subclass has a smaller form."""
        return self.state_dict()

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Undo `tensors`."""
        self.load_state_dict(tensors)

    def __init_subclass__(cls, *, savable: bool = True, **options: Any) -> None:
        super().__init_subclass__(**options)
        if savable:
            checkpoint.register(cls)

    def save_pretrained(self, folder: str | os.PathLike[str], **card: Any) -> Path:
        """Write config.json, masker.safetensors and a model card; see `maskunet.checkpoint.save`.

        Args:
            folder: where to; made if missing.
            card: what the model card says: `base_model`, `dataset`, `recipe`.

        Returns:
            The folder.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        return checkpoint.save(self, folder, **card)

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str], model: Any = None, **options: Any) -> Self:
        """Read a masker of this class; see `maskunet.load`, which reads any.

        Args:
            source: its folder, a hub id, or a bundled name.
            model: the pipeline or U-Net that it is for; a masker made for another one is refused.
            options: `revision`, `token` and `device` of `maskunet.load`.

        Raises:
            CheckpointError: missing or unreadable files, or a masker of another class.
            TargetError: made for another network; the differing layers are named.
        """
        masker = checkpoint.load(source, model, **options)
        if not isinstance(masker, cls):
            raise CheckpointError(
                f"expected a {cls.__name__} in {os.fspath(source)!r}, got a {type(masker).__name__}; use maskunet.load"
            )
        return masker

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload to the hub what `save_pretrained` writes; see `maskunet.checkpoint.push`.

        Args:
            repo_id: "user/name".
            options: of `maskunet.checkpoint.push`.

        Returns:
            The commit's address.
        """
        return checkpoint.push(self, repo_id, **options)
