"""The masks of a layer in one call: the inputs they come from, how they are drawn, and the form that they have."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..errors import TargetError
from ..network import LayerSpec
from ..operators import masked_conv2d, masked_linear


@dataclass(frozen=True)
class BlockInput:
    """The inputs of a block.

    Args:
        hidden_states: x_b (B, C_x, h, w).
        skip: s_b (B, C_s, h, w), the skip of the block's first resnet; None outside the decoder.
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
        tau: temperature of the straight-through gradient, > 0.
        seed: seed of this call's Gumbel noise, shared by the batch, or one per row; None for the deterministic
            threshold.
        noise: Gumbel noise by layer name, which replaces drawn noise.
    """

    tau: float = 1.0
    seed: int | tuple[int, ...] | None = None
    noise: Mapping[str, Tensor] | None = None

    @property
    def is_noisy(self) -> bool:
        """Whether masks are drawn with noise."""
        return self.seed is not None or self.noise is not None


class LayerMask(ABC):
    """The mask of one layer during one call of the U-Net, in some form."""

    #: Added to the index of each row's mask, where rows take their masks from different groups; None adds nothing.
    offsets: Sequence[int] | None = None

    @abstractmethod
    def logits(self) -> Tensor | None:
        """Return logits (*weight.shape) or (B, *weight.shape); None for a form without logits."""

    @abstractmethod
    def mask(self, layer: LayerSpec, draw: Draw, batch: int) -> Tensor:
        """Return the mask.

        Args:
            layer: the layer.
            draw: how logits become masks.
            batch: rows of the batch B.

        Returns:
            (*weight.shape), or (M, *weight.shape) where M divides B; 1 keeps a weight.
        """

    def run(self, layer: LayerSpec, module: nn.Module, x: Tensor, draw: Draw, batch: int) -> Tensor:
        """Compute the masked layer; forms that need not expand their mask override it.

        Args:
            layer: the layer.
            module: its module.
            x: its inputs (B, ...).
            draw: how logits become masks.
            batch: rows of the batch B.

        Returns:
            Its outputs.
        """
        factor = self.factor(layer, module, draw, batch)
        return self.apply(layer, module, x, self.mask(layer, draw, batch) if factor is None else factor)

    def factor(self, layer: LayerSpec, module: nn.Module, draw: Draw, batch: int) -> Tensor | None:
        """Return what multiplies the weight, if it is not the mask: several masks, each at a strength of its own.

        Args:
            layer: the layer.
            module: its module.
            draw: how logits become masks.
            batch: rows of the batch B.
        """
        return None

    def apply(self, layer: LayerSpec, module: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
        """Compute the layer under a mask.

        Args:
            layer: the layer.
            module: its module.
            x: its inputs (B, ...).
            mask: what `mask` or `factor` returned.

        Returns:
            Its outputs.

        Raises:
            TargetError: a convolution pads with something other than zeros.
        """
        if isinstance(module, nn.Linear):
            return masked_linear(x, module.weight, module.bias, mask)
        assert isinstance(module, nn.Conv2d)
        if module.padding_mode != "zeros":
            raise TargetError(f"expected zero padding, {layer.name} pads with {module.padding_mode!r}")
        options = (module.stride, module.padding, module.dilation, module.groups)
        return masked_conv2d(x, module.weight, module.bias, mask, *options)  # type: ignore[arg-type]
