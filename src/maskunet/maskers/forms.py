"""Forms of a layer's mask: dense logits, factored logits, a binary mask, packed bits. Each computes its layer fastest."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..errors import TargetError
from ..network import LayerSpec
from ..operators import factored_linear, factored_logits, layer_noise, packed_linear, unpack_bits
from ..relaxation import derive_seed, gumbel_sigmoid, threshold
from .layer_mask import Draw, LayerMask

Factors = tuple[Tensor, Tensor]


def _layer_seeds(layer: LayerSpec, draw: Draw) -> tuple[int, ...]:
    """Seeds of a layer's noise: one for the batch, or one per row."""
    seeds = draw.seed if isinstance(draw.seed, tuple) else (draw.seed,)
    return tuple(derive_seed(seed, layer.name) for seed in seeds)


@torch.compiler.disable
def _gumbel_noise(layer: LayerSpec, draw: Draw, device: torch.device) -> Tensor:
    """Gumbel noise of a layer, (*weight.shape) for the batch or (B, *weight.shape)."""
    if draw.noise is not None:
        if layer.name not in draw.noise:
            raise TargetError(f"expected Gumbel noise for every masked layer, {layer.name} is missing")
        return draw.noise[layer.name].to(device)
    noise = [layer_noise(layer.shape, seed, device) for seed in _layer_seeds(layer, draw)]
    return torch.stack(noise) if isinstance(draw.seed, tuple) else noise[0]


class DenseLogits(LayerMask):
    """Logits as they are.

    Args:
        values: (*weight.shape), or (M, *weight.shape).
    """

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def logits(self) -> Tensor:
        """Return the logits."""
        return self.values

    def mask(self, layer: LayerSpec, draw: Draw, batch: int) -> Tensor:
        """Relax the logits, with Gumbel noise or by threshold; see `LayerMask.mask`."""
        logits = self.logits()
        if not draw.is_noisy:
            return threshold(logits, draw.tau)
        noise = _gumbel_noise(layer, draw, logits.device)
        masks, draws = (x.shape[0] if x.ndim > len(layer.shape) else 1 for x in (logits, noise))
        if 1 < masks < draws and draws % masks == 0:  # row r takes logits r mod M, and its own noise
            logits = logits.repeat(draws // masks, *[1] * len(layer.shape))
        return gumbel_sigmoid(logits, noise, draw.tau)


class FactoredLogits(DenseLogits):
    """Logits as a low-rank product, S = left @ right^T + row, which a linear layer never expands.

    Args:
        factors: left (O, r) or (B, O, r) and right (I, r) or (B, I, r), at least one of them per sample. For a kernel,
            right is (I kh kw, r) if one product covers it, or (B, kh, kw, I, r) with one product per position. A function
            that returns both delays their computation until the layer runs.
        row: (I,) or (I kh kw,), added to every row.
        shape: shape of the layer's weight.
    """

    def __init__(self, factors: Factors | Callable[[], Factors], row: Tensor, shape: tuple[int, ...]) -> None:
        self._factors, self.row, self.shape = factors, row, shape

    @property
    def factors(self) -> Factors:
        """Left and right; computed at every access if they were passed as a function."""
        return self._factors() if callable(self._factors) else self._factors

    def logits(self) -> Tensor:
        """Expand the product, (B, *weight.shape)."""
        left, right = self.factors
        if right.ndim == 5:
            return factored_logits(left, right, self.row).permute(0, 3, 4, 1, 2)
        return factored_logits(left, right, self.row).reshape(-1, *self.shape)

    def run(self, layer: LayerSpec, module: nn.Module, x: Tensor, draw: Draw, batch: int) -> Tensor:
        """Compute a linear layer from the factors; see `LayerMask.run`."""
        if not isinstance(module, nn.Linear):
            return super().run(layer, module, x, draw, batch)
        noise: Callable[[int], Tensor] | tuple[int, ...] | None = None
        if draw.noise is not None:
            values = _gumbel_noise(layer, draw, x.device).reshape(-1, *layer.shape)
            noise = lambda row: values[row % len(values)]  # noqa: E731
        elif draw.seed is not None:
            noise = _layer_seeds(layer, draw)
        return factored_linear(x, module.weight, module.bias, *self.factors, self.row, draw.tau, noise)


class ConstantLogits(FactoredLogits):
    """Logits of low rank that are the same at every call: without noise and gradients, their mask is computed only once.

    Args:
        factors: a function that returns left (O, r) and right (I kh kw, r); see `FactoredLogits`.
        row: (I kh kw,), added to every row.
        shape: shape of the layer's weight.
        bits: returns their mask, packed by `pack_bits`.
        requires_grad: whether the logits are trained.
    """

    def __init__(
        self,
        factors: Callable[[], Factors],
        row: Tensor,
        shape: tuple[int, ...],
        bits: Callable[[], Tensor],
        requires_grad: bool,
    ) -> None:
        super().__init__(factors, row, shape)
        self._bits, self._requires_grad = bits, requires_grad

    def _packed(self, draw: Draw) -> PackedMask | None:
        """The mask at one bit per weight; None where it has to be computed."""
        if draw.is_noisy or (torch.is_grad_enabled() and self._requires_grad):
            return None
        # A graph, compiled or captured, cannot look whether the logits have changed.
        is_graph = torch.compiler.is_compiling() or (self.row.is_cuda and torch.cuda.is_current_stream_capturing())
        return None if is_graph or self.row.is_meta else PackedMask(self._bits())

    def mask(self, layer: LayerSpec, draw: Draw, batch: int) -> Tensor:
        """Return the mask; see `LayerMask.mask`."""
        packed = self._packed(draw)
        return super().mask(layer, draw, batch) if packed is None else packed.mask(layer, draw, batch)

    def run(self, layer: LayerSpec, module: nn.Module, x: Tensor, draw: Draw, batch: int) -> Tensor:
        """Compute the layer from the bits, or from the factors; see `LayerMask.run`."""
        packed = self._packed(draw)
        if packed is None:
            return super().run(layer, module, x, draw, batch)
        return packed.run(layer, module, x, draw, batch)


class BinaryMask(LayerMask):
    """A mask of 0 and 1.

    Args:
        values: (*weight.shape), or (M, *weight.shape).
        offsets: for each row of the batch, what is added to its mask's index, if rows take masks from different groups
            of `values`.
    """

    def __init__(self, values: Tensor, offsets: Sequence[int] | None = None) -> None:
        self.values = values
        self.offsets = None if offsets is None else list(offsets)

    def logits(self) -> None:
        """Return None: a binary mask has no logits."""

    def mask(self, layer: LayerSpec, draw: Draw, batch: int) -> Tensor:
        """Return the mask; see `LayerMask.mask`."""
        return self.values


class PackedMask(LayerMask):
    """Masks of 0 and 1 at one bit per weight, which a linear layer expands only while it runs.

    Args:
        packed: masks (M, *weight.shape), packed by `pack_bits`.
        num_masks: M; None for one mask without a dimension of its own.
    """

    def __init__(self, packed: Tensor, num_masks: int | None = None) -> None:
        self.packed, self.num_masks = packed, num_masks

    def logits(self) -> None:
        """Return None: a binary mask has no logits."""

    def mask(self, layer: LayerSpec, draw: Draw, batch: int) -> Tensor:
        """Return the masks, boolean; see `LayerMask.mask`."""
        return unpack_bits(self.packed, layer.shape if self.num_masks is None else (self.num_masks, *layer.shape))

    def run(self, layer: LayerSpec, module: nn.Module, x: Tensor, draw: Draw, batch: int) -> Tensor:
        """Compute a linear layer from the bits; see `LayerMask.run`."""
        if not isinstance(module, nn.Linear):
            return super().run(layer, module, x, draw, batch)
        return packed_linear(x, module.weight, module.bias, self.packed, self.num_masks or 1)
