r"""The paper's mask generator: one small network per block, conditioned on the timestep and on the sample.

For block b with hidden state :math:`x_b`, last skip :math:`s_b` and timestep embedding :math:`e`,

.. math::
    z_b &= \mathrm{GAP}([x_b, s_b]) + P_b e                     && (B, C_i) \\
    h_b &= \mathrm{relu}(W^1_b z_b + c^1_b)                     && (B, 64) \\
    Z_b &= \mathrm{relu}(W^2_b h_b + c^2_b)                     && (B, C_o / f, C_i / f) \\
    S_l &= (A_l Z_b + a_l 1^T) B_l^T + 1 b_l^T                  && (B, O_l, I_l)

gives the logits of every target layer l of the block. For a convolution the pooling is adaptive to its kernel, and
the same networks act at every kernel position. Only Z_b is computed at the block's entry. When a layer runs, the product
is taken from the right, as left = [A_l, a_l] (O, C_o / f + 1) and right = [B_l Z_b^T, B_l 1] (B, I, C_o / f + 1). In a
decoder, whose blocks also read skips, their rank C_o / f is a half to a third of C_i / f.

Reference: Wang et al., "Not All Parameters Matter", CVPR 2025, section 3.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..network import BlockSpec, LayerSpec
from ..settings import Targets
from ..targets import describe
from .authors import from_authors_layout
from .conditional import ConditionalMasker, layer_key
from .config import MaskGeneratorConfig
from .forms import FactoredLogits
from .layer_mask import BlockInput, LayerMask


class _LayerFactors(nn.Module):
    """A_l, a_l, B_l and b_l of one layer."""

    def __init__(self, layer: LayerSpec, rows: int, columns: int, initial_logit: float) -> None:
        super().__init__()
        self.shape = layer.shape
        outputs, inputs = layer.shape[:2]
        self.out_weight = nn.Parameter(torch.zeros(outputs, rows))
        self.out_bias = nn.Parameter(torch.full((outputs,), initial_logit))
        self.in_weight = nn.Parameter(torch.zeros(inputs, columns))
        self.in_bias = nn.Parameter(torch.full((inputs,), initial_logit))

    def _factors(self, reduced: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(reduced.device.type, enabled=False):
            sums = self.in_weight.sum(1).expand(*reduced.shape[:-2], 1, -1)
            right = torch.cat([reduced @ self.in_weight.T, sums], -2)
            return torch.cat([self.out_weight, self.out_bias[:, None]], 1), right.mT

    def forward(self, reduced: Tensor) -> FactoredLogits:
        # The factors of a block are as large as the generator, so each layer's are computed when it runs.
        return FactoredLogits(partial(self._factors, reduced), self.in_bias, self.shape)


class _BlockGenerator(nn.Module):
    """The network of one block."""

    def __init__(self, block: BlockSpec, config: MaskGeneratorConfig) -> None:
        super().__init__()
        self.rows = max(1, block.out_channels // config.reduction)
        self.columns = max(1, block.in_channels // config.reduction)
        self.use_sample = config.use_sample
        self.temb_proj = nn.Linear(block.temb_channels, block.in_channels, bias=False) if config.use_timestep else None
        self.hidden = nn.Linear(block.in_channels, config.hidden)
        self.reduced = nn.Linear(config.hidden, self.rows * self.columns)
        nn.init.kaiming_normal_(self.hidden.weight, nonlinearity="relu")
        # The biases keep PyTorch's random values: if all were zero, relu would pass no gradient at all.
        nn.init.zeros_(self.reduced.weight)
        self.layers = nn.ModuleDict(
            {
                layer_key(layer.name, block.name): _LayerFactors(layer, self.rows, self.columns, config.initial_logit)
                for layer in block.layers
            }
        )
        self.kernels = {layer_key(layer.name, block.name): (layer.name, layer.kernel) for layer in block.layers}

    def _pooled(self, inputs: BlockInput, kernel: tuple[int, int], dtype: torch.dtype) -> Tensor:
        parts = [inputs.hidden_states] if inputs.skip is None else [inputs.hidden_states, inputs.skip]
        if kernel == (1, 1):
            return torch.cat([part.to(dtype).mean((2, 3)) for part in parts], 1)
        pooled = [F.adaptive_avg_pool2d(part.to(dtype), kernel).permute(0, 2, 3, 1) for part in parts]
        return torch.cat(pooled, -1)

    def _reduced(self, inputs: BlockInput, kernel: tuple[int, int]) -> Tensor:
        """Z_b, (B, C_o / f, C_i / f) or (B, kh, kw, C_o / f, C_i / f)."""
        dtype = self.hidden.weight.dtype
        z: Tensor | None = self._pooled(inputs, kernel, dtype) if self.use_sample else None
        if self.temb_proj is not None:
            shift = self.temb_proj(inputs.temb.to(dtype))
            shift = shift if kernel == (1, 1) else shift[:, None, None].expand(-1, *kernel, -1)
            z = shift if z is None else z + shift
        assert z is not None
        return F.relu(self.reduced(F.relu(self.hidden(z)))).unflatten(-1, (self.rows, self.columns))

    def forward(self, inputs: BlockInput) -> dict[str, LayerMask]:
        reduced: dict[tuple[int, int], Tensor] = {}
        masks: dict[str, LayerMask] = {}
        for key, factors in self.layers.items():
            name, kernel = self.kernels[key]
            if kernel not in reduced:
                reduced[kernel] = self._reduced(inputs, kernel)
            masks[name] = factors(reduced[kernel])
        return masks


class MaskGenerator(ConditionalMasker):
    """The paper's training-based masker.

    Args:
        network: the blocks and layers that it masks.
        config: its settings; the defaults if None.

    Raises:
        SettingError: the config is of another class.

    Example:
        >>> masker = MaskGenerator.for_unet(pipe.unet, MaskGeneratorConfig(targets="decoder-attention"))
        >>> mu.attach(pipe, masker)
    """

    config_class: ClassVar[type[MaskGeneratorConfig]] = MaskGeneratorConfig

    def build_block(self, block: BlockSpec) -> nn.Module:
        """Return the network of one block; see `ConditionalMasker.build_block`."""
        return _BlockGenerator(block, self.config)

    @classmethod
    def from_authors(
        cls,
        unet: nn.Module,
        mask_generators: Mapping[str, Tensor],
        adapters: Mapping[str, Tensor],
        *,
        tau: float = 1.0,
    ) -> MaskGenerator:
        """Build a generator from the two state dicts of the authors' scripts.

        Args:
            unet: the U-Net that they were trained for, or its pipeline.
            mask_generators: keys `N.conv_kernel_mask.{0,2}.{weight,bias}` and `N.proj_temb.weight` for up block N.
            adapters: keys `N.<layer name with _ for .>.conv_{in,out}.{weight,bias}`.
            tau: temperature for further training, > 0.

        Returns:
            The generator, without the part for the up block without attention, which no layer uses.

        Raises:
            CheckpointError: keys are missing or unknown, or shapes do not fit the U-Net.
        """
        network, tensors, hidden, reduction = from_authors_layout(unet, mask_generators, adapters)
        names = tuple(layer.name for layer in network.layers)
        default = tuple(layer.name for layer in describe(unet, "decoder-attention").layers)
        targets: Targets = "decoder-attention" if names == default else names
        masker = cls(network, MaskGeneratorConfig(targets=targets, tau=tau, hidden=hidden, reduction=reduction))
        masker.load_state_dict(tensors)
        return masker.eval()
