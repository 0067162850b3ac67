r"""A small mask generator: logits of low rank whose factors are modulated by the timestep and by the sample.

For block b with hidden state :math:`x_b`, last skip :math:`s_b` and timestep embedding :math:`e`,

.. math::
    h_b &= \mathrm{relu}(W_b \, \mathrm{GAP}([x_b, s_b]) + E_b e + k_b)              && (B, H) \\
    (c_l, \alpha_l, \beta_l) &= D_l h_b + (1, 0, 0)                                   && (B, r - 1) \text{ each} \\
    S_l &= (U_l \operatorname{diag}(c_l) + 1 \beta_l^T) V_l^T + (a_l + U_l \alpha_l) 1^T + 1 b_l^T   && (B, O_l, I_l)

gives the logits of every target layer l: a product of rank r, with one term per row and one per column. U, V, a and b
belong to the layer. The condition changes the weight of each component and the terms, 3 (r - 1) numbers per layer. The
paper's generator multiplies a (C_o / 4, C_i / 4) matrix into a factor for every sample; here r columns are scaled.

Without a condition, S_l = U_l V_l^T + a_l 1^T + 1 b_l^T; the masks are then computed once and kept at one bit per weight.

A convolution's weight is read as a matrix (O, I kh kw).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..network import BlockSpec, LayerSpec
from ..operators import pack_bits
from ..relaxation import threshold
from .conditional import ConditionalMasker, layer_key
from .config import LowRankMaskerConfig
from .forms import ConstantLogits, FactoredLogits
from .layer_mask import BlockInput, LayerMask


class _LayerFactors(nn.Module):
    """U_l, V_l, a_l and b_l of one layer."""

    def __init__(self, layer: LayerSpec, rank: int, initial_logit: float) -> None:
        super().__init__()
        self.shape = layer.shape
        outputs, inputs = layer.shape[0], layer.weights // layer.shape[0]
        # U is zero and V is not, so the product starts at zero and its gradient does not. With entries of V of 1 the first
        # steps are so large that masks hurt before they help.
        self.out_weight = nn.Parameter(torch.zeros(outputs, rank - 1))
        self.out_bias = nn.Parameter(torch.full((outputs,), initial_logit / 2))
        self.in_weight = nn.Parameter(torch.randn(inputs, rank - 1) / math.sqrt(rank))
        self.in_bias = nn.Parameter(torch.full((inputs,), initial_logit / 2))

    def constant_logits(self) -> FactoredLogits:
        return FactoredLogits(self.constant_factors, self.in_bias, self.shape)

    def constant_mask(self, bits: Callable[[], Tensor]) -> ConstantLogits:
        is_trained = any(parameter.requires_grad for parameter in self.parameters())
        return ConstantLogits(self.constant_factors, self.in_bias, self.shape, bits, is_trained)

    def constant_factors(self) -> tuple[Tensor, Tensor]:
        ones = self.in_weight.new_ones(len(self.in_weight), 1)
        left = torch.cat([self.out_weight, self.out_bias[:, None]], -1)
        return left, torch.cat([self.in_weight, ones], -1)

    def forward(self, modulation: Tensor) -> FactoredLogits:
        scale, row, column = modulation.chunk(3, -1)  # c - 1, alpha, beta
        weights = self.out_weight * (scale + 1)[:, None] + column[:, None]
        offsets = (self.out_weight @ row[:, :, None]) + self.out_bias[:, None]
        ones = self.in_weight.new_ones(len(self.in_weight), 1)
        left, right = torch.cat([weights, offsets], -1), torch.cat([self.in_weight, ones], -1)
        return FactoredLogits((left, right), self.in_bias, self.shape)


class _BlockFactors(nn.Module):
    """The network of one block."""

    def __init__(self, block: BlockSpec, config: LowRankMaskerConfig) -> None:
        super().__init__()
        self.temb_proj = None
        if config.use_timestep:  # one bias for both
            self.temb_proj = nn.Linear(block.temb_channels, config.hidden, bias=not config.use_sample)
        self.sample_proj = nn.Linear(block.in_channels, config.hidden) if config.use_sample else None
        self.modulation = nn.Linear(config.hidden, 3 * (config.rank - 1) * len(block.layers), bias=False)
        nn.init.zeros_(self.modulation.weight)
        self.layers = nn.ModuleDict(
            {layer_key(x.name, block.name): _LayerFactors(x, config.rank, config.initial_logit) for x in block.layers}
        )
        self.names = [layer.name for layer in block.layers]

    def forward(self, inputs: BlockInput) -> dict[str, LayerMask]:
        dtype = self.modulation.weight.dtype
        z: Tensor | None = None
        if self.sample_proj is not None:
            parts = [inputs.hidden_states] if inputs.skip is None else [inputs.hidden_states, inputs.skip]
            z = self.sample_proj(torch.cat([part.to(dtype).mean((2, 3)) for part in parts], 1))
        if self.temb_proj is not None:
            shift = self.temb_proj(inputs.temb.to(dtype))
            z = shift if z is None else z + shift
        assert z is not None
        modulations = self.modulation(F.relu(z)).chunk(len(self.names), -1)
        return {n: f(m) for n, f, m in zip(self.names, self.layers.values(), modulations, strict=True)}


class _ConstantFactors(nn.Module):
    """The logits of one block that depend on nothing."""

    def __init__(self, block: BlockSpec, config: LowRankMaskerConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(
            {layer_key(x.name, block.name): _LayerFactors(x, config.rank, config.initial_logit) for x in block.layers}
        )
        self.names = [layer.name for layer in block.layers]
        self._latest: tuple[Tensor, dict[str, Tensor]] | None = None  # parameters, and the masks that they gave

    def _by_name(self) -> Iterator[tuple[str, _LayerFactors]]:
        for name, layer in zip(self.names, self.layers.values(), strict=True):
            assert isinstance(layer, _LayerFactors)
            yield name, layer

    @torch.no_grad()
    def _bits(self) -> dict[str, Tensor]:
        """Packed masks by layer, of the parameters as they are now."""
        # Values are compared and not versions, which writes through `.data`, such as EMA's, do not change.
        values = torch.cat([parameter.detach().flatten() for parameter in self.parameters()])
        latest = self._latest
        if latest is not None and _equals(latest[0], values):
            return latest[1]
        bits = {}
        for name, layer in self._by_name():
            bits[name] = pack_bits(threshold(layer.constant_logits().logits()))
        self._latest = (values, bits)
        return bits

    def forward(self, inputs: BlockInput) -> dict[str, LayerMask]:
        latest: list[dict[str, Tensor]] = []

        def bits(name: str) -> Tensor:
            if not latest:  # one comparison per call
                latest.append(self._bits())
            return latest[0][name]

        return {name: layer.constant_mask(functools.partial(bits, name)) for name, layer in self._by_name()}


def _equals(a: Tensor, b: Tensor) -> bool:
    return (a.device, a.dtype) == (b.device, b.dtype) and torch.equal(a, b)


class LowRankMasker(ConditionalMasker):
    """A small mask generator: 1/25 of the paper's operations and 1/27 of its parameters at SD 1.5 size.

    Args:
        network: the blocks and layers that it masks.
        config: its settings; the defaults if None.

    Raises:
        SettingError: the config is of another class.

    Example:
        >>> masker = LowRankMasker.for_unet(pipe.unet, LowRankMaskerConfig(rank=16))
        >>> mu.attach(pipe, masker)
    """

    config_class: ClassVar[type[LowRankMaskerConfig]] = LowRankMaskerConfig

    def build_block(self, block: BlockSpec) -> nn.Module:
        """Return the network of one block; see `ConditionalMasker.build_block`."""
        is_conditional = self.config.use_timestep or self.config.use_sample
        return _BlockFactors(block, self.config) if is_conditional else _ConstantFactors(block, self.config)
