"""Forms of a mask: free logits, factors of a low-rank product, given bits. Each computes its layer the cheapest way."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..errors import TargetError
from ..operators import factored_linear, factored_logits, layer_noise, packed_linear, unpack_bits
from ..relaxation import derive_seed, gumbel_sigmoid, threshold
from ..targets import LayerSpec
from .base import Draw, LayerMask


def _seeds(layer: LayerSpec, draw: Draw) -> tuple[int, ...]:
    """Seeds of a layer's noise: one that the batch shares, or one a row."""
    seeds = draw.seed if isinstance(draw.seed, tuple) else (draw.seed,)
    return tuple(derive_seed(seed, layer.name) for seed in seeds)


@torch.compiler.disable
def _drawn(layer: LayerSpec, draw: Draw, device: torch.device) -> Tensor:
    """Gumbel noise, (*weight.shape) shared by the batch or (B, *weight.shape)."""
    if draw.noise is not None:
        if layer.name not in draw.noise:
            raise TargetError(f"expected Gumbel noise for every masked layer, {layer.name} is missing")
        return draw.noise[layer.name].to(device)
    noise = [layer_noise(layer.shape, seed, device) for seed in _seeds(layer, draw)]
    return torch.stack(noise) if isinstance(draw.seed, tuple) else noise[0]


class Logits(LayerMask):
    """Logits that are held as they are."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def logits(self) -> Tensor:
        """Return the logits."""
        return self.values

    def mask(self, layer: LayerSpec, draw: Draw, batch: int) -> Tensor:
        """Relax the logits to a mask: with Gumbel noise where the draw asks for it, else by threshold."""
        logits = self.logits()
        if draw.seed is None and draw.noise is None:
            return threshold(logits, draw.tau)
        noise = _drawn(layer, draw, logits.device)
        sets, draws = (x.shape[0] if x.ndim > len(layer.shape) else 1 for x in (logits, noise))
        if 1 < sets < draws and draws % sets == 0:  # row r takes set r mod sets, and noise of its own
            logits = logits.repeat(draws // sets, *[1] * len(layer.shape))
        return gumbel_sigmoid(logits, noise, draw.tau)


Factors = tuple[Tensor, Tensor]


class FactoredLogits(Logits):
    """Logits as a low-rank product, S = left @ right^T + row; expanded only while their layer runs.

    Args:
        factors: left (O, r) or (B, O, r), and right (I, r) or (B, I, r), one of them by sample; (I kh kw, r) where one
            product is the whole kernel, (B, kh, kw, I, r) where each position has one. Or what makes them when the layer
            runs, so that those of a block are not held all at once.
        row: (I,) or (I kh kw,), added to every row.
        shape: the layer's weight shape.
    """

    def __init__(self, factors: Factors | Callable[[], Factors], row: Tensor, shape: tuple[int, ...]) -> None:
        self._factors, self.row, self.shape = factors, row, shape

    @property
    def factors(self) -> Factors:
        """Left and right; made anew at each call where they were given as what makes them."""
        return self._factors() if callable(self._factors) else self._factors

    def logits(self) -> Tensor:
        """Expand the product: (B, *shape)."""
        left, right = self.factors
        if right.ndim == 5:
            return factored_logits(left, right, self.row).permute(0, 3, 4, 1, 2)
        return factored_logits(left, right, self.row).reshape(-1, *self.shape)

    def run(self, layer: LayerSpec, module: nn.Module, x: Tensor, draw: Draw, batch: int) -> Tensor:
        """Compute a linear layer from the factors."""
        if not isinstance(module, nn.Linear):
            return super().run(layer, module, x, draw, batch)
        noise: Callable[[int], Tensor] | tuple[int, ...] | None = None
        if draw.noise is not None:
            drawn = _drawn(layer, draw, x.device).reshape(-1, *layer.shape)
            noise = lambda row: drawn[row % len(drawn)]  # noqa: E731
        elif draw.seed is not None:
            noise = _seeds(layer, draw)
        return factored_linear(x, module.weight, module.bias, *self.factors, self.row, draw.tau, noise)


class GivenMask(LayerMask):
    """A binary mask that is known already."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def logits(self) -> None:
        """Return None: a given mask has no logits."""

    def mask(self, layer: LayerSpec, draw: Draw, batch: int) -> Tensor:
        """Return the mask."""
        return self.values


class PackedMask(LayerMask):
    """Binary masks at one bit a weight, expanded only while their layer runs.

    Args:
        packed: masks (M, *weight.shape) as `pack_bits` packs them.
        sets: M; None for one mask that all samples share, without a dimension for them.
    """

    def __init__(self, packed: Tensor, sets: int | None = None) -> None:
        self.packed, self.sets = packed, sets

    def logits(self) -> None:
        """Return None: a given mask has no logits."""

    def mask(self, layer: LayerSpec, draw: Draw, batch: int) -> Tensor:
        """Return the masks, boolean."""
        return unpack_bits(self.packed, layer.shape if self.sets is None else (self.sets, *layer.shape))

    def run(self, layer: LayerSpec, module: nn.Module, x: Tensor, draw: Draw, batch: int) -> Tensor:
        """Compute a linear layer from the bits."""
        if not isinstance(module, nn.Linear):
            return super().run(layer, module, x, draw, batch)
        return packed_linear(x, module.weight, module.bias, self.packed, self.sets or 1)
