"""The one seam of the library: a masker answers, for one block at one step, the masks of each target layer.

A masker returns a `LayerMask` for every masked layer of the block, in whatever form is cheapest: free logits, the
factors of a low-rank product, or given masks. The hooks of `maskunet.attach` hand it to the operator, which asks for
the mask when the layer runs. Trainer, search, analysis and generation differ only in which masker they attach.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import TargetError
from ..operators import (
    factored_linear,
    factored_logits,
    layer_noise,
    masked_conv2d,
    masked_linear,
    packed_linear,
    unpack_bits,
)
from ..relaxation import derive_seed, gumbel_sigmoid, threshold
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
            raise ValueError(f"expected a temperature tau > 0, got {tau}")
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

    def check_batch(self, latents: Tensor, pipe: Callable[[], Any] | None = None) -> None:
        """Check a batch of the U-Net in the same way.

        A guided batch holds every prompt twice. It is told by its latents, which are the same in both halves.

        Args:
            latents: the U-Net's input (rows, C, h, w).
            pipe: gives the pipeline, which may know that its batches are not guided.

        Raises:
            TargetError: its prompts are no multiple of the sets of masks.
        """
        rows = latents.shape[0]
        if self.guided_half is not None:
            if rows % 2 == 0:  # another is refused by the masks themselves
                self.check_prompts(rows // 2)
        elif any(rows % sets or (rows % 2 == 0 and rows // 2 % sets) for sets in self.sample_counts):
            self._look_closer(latents, pipe)

    @torch.compiler.disable  # type: ignore[untyped-decorator, unused-ignore]
    def _look_closer(self, latents: Tensor, pipe: Callable[[], Any] | None) -> None:
        # Latents are compared here alone, since on a GPU that waits for them.
        says = None if pipe is None else getattr(pipe(), "do_classifier_free_guidance", None)
        half = latents.shape[0] // 2
        guided = says is not False and len(latents) == 2 * half and torch.equal(latents[:half], latents[half:])
        self.check_prompts(half if guided else len(latents))

    def tensors(self) -> dict[str, Tensor]:
        """Return what `save_pretrained` writes; the state dict unless a subclass has a smaller form."""
        return self.state_dict()

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Undo `tensors`."""
        self.load_state_dict(tensors)

    def save_pretrained(self, folder: Any, **options: Any) -> Any:
        """Write config.json, masker.safetensors and a model card; see `maskunet.checkpoint.save`."""
        from ..checkpoint import save

        return save(self, folder, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> Any:
        """Upload to the hub what `save_pretrained` writes; see `maskunet.checkpoint.push`."""
        from ..checkpoint import push

        return push(self, repo_id, **options)
