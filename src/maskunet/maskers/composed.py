r"""Several maskers as one: a weight is kept if all of them keep it, or if most of them do.

With the masks :math:`m_i` of the maskers that mask a layer, "product" keeps a weight iff every :math:`m_i = 1`, and
"majority" iff at least half of them are 1. A masker has no say on layers and rows that it leaves alone. Under "product"
every masker can have a strength of its own, :math:`W' = W \prod_i (1 - s_i (1 - m_i))`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from .. import checkpoint
from ..errors import CheckpointError, SettingError, TargetError
from ..network import BlockSpec, LayerSpec, Network
from .base import Masker
from .layer_mask import BlockInput, Draw, LayerMask

_RULES = ("product", "majority")
#: Names stand in the names of tensors, in files and on the command line, and cannot be taken for those of layers.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class MaskPart:
    """The mask of a layer by one masker of a composition.

    Args:
        name: the masker's name.
        masker: the masker.
        mask: its mask.
        strength: how strongly it acts, in [0, 1].
        is_masked: for each row of the batch, whether the masker masks it; None if it masks all.
    """

    name: str
    masker: Masker
    mask: LayerMask
    strength: float = 1.0
    is_masked: Sequence[bool] | None = None

    def values(self, layer: LayerSpec, draw: Draw, batch: int) -> Tensor:
        """Return the masker's own mask; see `LayerMask.mask`."""
        return self.mask.mask(layer, replace(draw, tau=self.masker.tau), batch)


class ComposedMask(LayerMask):
    """The masks of a layer by several maskers.

    Args:
        parts: the masks, at least one.
        compose: "product" or "majority".
    """

    def __init__(self, parts: Sequence[MaskPart], compose: str = "product") -> None:
        self.parts, self.compose = list(parts), compose

    def logits(self) -> Tensor | None:
        """Return the logits of a single mask; several have none in common."""
        return self.parts[0].mask.logits() if len(self.parts) == 1 else None

    def mask(self, layer: LayerSpec, draw: Draw, batch: int) -> Tensor:
        """Return the composed mask; see `LayerMask.mask`."""
        if self.compose == "majority" and len(self.parts) > 1:
            return self._majority(layer, draw, batch)
        return _fold(torch.mul, (part.values(layer, draw, batch) for part in self.parts), len(layer.shape))

    def factor(self, layer: LayerSpec, module: nn.Module, draw: Draw, batch: int) -> Tensor | None:
        """Return the product of the masks at their strengths; see `LayerMask.factor`."""
        if all(part.strength == 1 for part in self.parts):
            return None
        dtype = torch.promote_types(module.weight.dtype, torch.float32)  # type: ignore[arg-type]
        factors = (1 - part.strength * (1 - part.values(layer, draw, batch).to(dtype)) for part in self.parts)
        return _fold(torch.mul, factors, len(layer.shape))

    def _majority(self, layer: LayerSpec, draw: Draw, batch: int) -> Tensor:
        def votes(part: MaskPart) -> Tensor:
            """+1 for a weight that it keeps, -1 for one that it drops, and 0 in rows that it does not mask."""
            values = 2 * part.values(layer, draw, batch).to(torch.int16) - 1
            if part.is_masked is None or all(part.is_masked):
                return values
            voting = torch.tensor(part.is_masked, dtype=torch.int16, device=values.device)
            return values * voting.view(-1, *[1] * len(layer.shape))

        return _fold(torch.add, (votes(part) for part in self.parts), len(layer.shape)) >= 0


def _fold(combine: Callable[[Tensor, Tensor], Tensor], values: Iterable[Tensor], ndim: int) -> Tensor:
    """Combine masks of one shape (ndim dimensions), each alone or M of them, of which row r of a batch takes r mod M."""

    def combined(a: Tensor, b: Tensor) -> Tensor:
        if a.ndim > ndim and b.ndim > ndim and 1 not in (len(a), len(b)):
            rows = math.lcm(len(a), len(b))
            a, b = (m if len(m) == rows else m.repeat(rows // len(m), *[1] * ndim) for m in (a, b))
        return combine(a, b)

    return reduce(combined, values)


class ComposedMasker(Masker):
    """Several maskers by name, attached, saved and loaded as one.

    It cannot be trained: train the maskers one by one. It starts in evaluation mode, and its own mode counts, not theirs.
    Where masks are drawn with noise, all maskers see the same noise, so a masker composed with its copy is that masker.

    Args:
        maskers: the maskers by name, made for one U-Net. They may mask different layers and rows.
        compose: "product" keeps a weight iff all maskers keep it, "majority" iff at least half of them do.

    Raises:
        SettingError: no masker, one of another type, one that stands there twice or is composed itself, a name with other
            characters than letters, digits, - and _, or an unknown `compose`.
        TargetError: the maskers were made for different networks.

    Example:
        >>> masker = ComposedMasker({"style": style, "detail": detail})
        >>> attachment = mu.attach(pipe, masker)
        >>> attachment.set_maskers("style")
    """

    def __init__(self, maskers: Mapping[str, Masker], compose: str = "product") -> None:
        _check(maskers, compose)
        super().__init__(_united(maskers))
        self.compose, self.names = compose, tuple(maskers)
        #: Layers of the composition that this selection of it leaves alone; see `select`.
        self.unmasked_layers: frozenset[str] = frozenset()
        # Kept, since graphs of torch.compile hold for one object each.
        self._selections: dict[frozenset[str], ComposedMasker] = {}
        self._maskers = nn.ModuleList(maskers.values())
        self.mask_counts = frozenset().union(*(masker.mask_counts for masker in maskers.values()))
        self.guided_half = next((m.guided_half for m in maskers.values() if m.guided_half is not None), None)
        replaced = (m.replaced_guidance for m in maskers.values() if m.replaced_guidance is not None)
        self.replaced_guidance = next(replaced, None)
        self._names_of_block: dict[str, list[str]] = {}
        for name, masker in maskers.items():
            for block in masker.network.blocks:
                self._names_of_block.setdefault(block.name, []).append(name)

    @property
    def maskers(self) -> dict[str, Masker]:
        """The maskers by name."""
        return dict(zip(self.names, self._maskers, strict=True))  # type: ignore[arg-type]

    @property
    def conditions(self) -> tuple[str, ...]:
        """What any of the maskers depends on; see `Masker.conditions`."""
        every = {condition for masker in self.maskers.values() for condition in masker.conditions}
        return tuple(name for name in ("timestep", "sample") if name in every)

    def select(self, names: Sequence[str]) -> ComposedMasker:
        """Return the composition of some of the maskers, which stay shared.

        Args:
            names: their names.
        """
        if set(names) == set(self.names):
            return self
        key = frozenset(names)
        if key not in self._selections:
            maskers = {name: masker for name, masker in self.maskers.items() if name in key}
            selected = self._selections[key] = ComposedMasker(maskers, self.compose)
            masked = {layer.name for layer in selected.network.layers}
            selected.unmasked_layers = frozenset(layer.name for layer in self.network.layers) - masked
        self._selections[key].training = self.training
        return self._selections[key]

    def block_masks(self, block: str, inputs: BlockInput) -> Mapping[str, LayerMask]:
        """Return the masks of a block's layers; see `Masker.block_masks`."""
        maskers = self.maskers
        parts: dict[str, list[MaskPart]] = {}
        for name in self._names_of_block.get(block, ()):
            for layer, mask in maskers[name].block_masks(block, inputs).items():
                parts.setdefault(layer, []).append(MaskPart(name, maskers[name], mask))
        return {layer: ComposedMask(masks, self.compose) for layer, masks in parts.items()}

    @property
    def settings(self) -> dict[str, Any]:
        """The rule, and class, settings and network of every masker, as JSON values."""
        maskers = {
            name: {"masker": type(m).__name__, "settings": m.settings, "network": m.network.to_json()}
            for name, m in self.maskers.items()
        }
        return {"compose": self.compose, "maskers": maskers}

    @classmethod
    def from_settings(cls, network: Network, settings: Mapping[str, Any]) -> ComposedMasker:
        """Build the maskers from saved settings.

        Args:
            network: the blocks and layers that they mask together; each has its own in the settings.
            settings: what `settings` returned.

        Raises:
            CheckpointError: a masker is of an unknown class.
        """
        maskers = {
            name: checkpoint.masker_class(part["masker"]).from_settings(
                Network.from_json(part["network"]), part["settings"]
            )
            for name, part in settings["maskers"].items()
        }
        return cls(maskers, settings["compose"])

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of every masker, as name/key."""
        return {f"{name}/{key}": value for name, m in self.maskers.items() for key, value in m.tensors().items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Read saved tensors.

        Args:
            tensors: what `tensors` returned.

        Raises:
            CheckpointError: a tensor belongs to none of the maskers, or does not fit its own.
        """
        by_masker: dict[str, dict[str, Tensor]] = {name: {} for name in self.names}
        for full_key, value in tensors.items():
            name, _, key = full_key.partition("/")
            if name not in by_masker:
                raise CheckpointError(f"expected tensors of the maskers {', '.join(self.names)}, got {full_key!r}")
            by_masker[name][key] = value
        for name, masker in self.maskers.items():
            masker.load_tensors(by_masker[name])


def parts_of(masker: Masker) -> tuple[Masker, ...]:
    """Return the maskers of a composition; any other masker alone.

    Args:
        masker: the masker.
    """
    return tuple(masker.maskers.values()) if isinstance(masker, ComposedMasker) else (masker,)


def _check(maskers: Mapping[str, Masker], compose: str) -> None:
    if compose not in _RULES:
        raise SettingError(f"expected compose to be one of {', '.join(_RULES)}, got {compose!r:.80}")
    if not maskers:
        raise SettingError("expected at least one masker to compose, got none")
    for name, masker in maskers.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise SettingError(f"expected names of maskers to be letters, digits, - and _, got {name!r:.80}")
        if not isinstance(masker, Masker):
            raise SettingError(f"expected maskers to compose, got {type(masker).__name__} for {name!r}")
        if isinstance(masker, ComposedMasker):
            raise SettingError(
                f"expected single maskers to compose, {name!r} is composed of {', '.join(masker.names)}; compose those"
            )
    if len({id(masker) for masker in maskers.values()}) < len(maskers):
        raise SettingError("expected different maskers to compose, one stands there twice; leave it out once")


def _united(maskers: Mapping[str, Masker]) -> Network:
    """The blocks and layers of all maskers, in the order in which the maskers name them."""
    blocks: dict[str, BlockSpec] = {}
    for name, masker in maskers.items():
        for block in masker.network.blocks:
            known = blocks.get(block.name)
            blocks[block.name] = block if known is None else _merged(known, block, name)
    return Network(tuple(blocks.values()))


def _merged(known: BlockSpec, block: BlockSpec, name: str) -> BlockSpec:
    """A block with the layers of two maskers."""

    def widths(spec: BlockSpec) -> tuple[int, int, int]:
        return spec.in_channels, spec.out_channels, spec.temb_channels

    layers = {layer.name: layer for layer in known.layers}
    differs = any(widths(known)) and any(widths(block)) and widths(known) != widths(block)
    if differs or any(layers.setdefault(layer.name, layer) != layer for layer in block.layers):
        raise TargetError(
            f"expected maskers for one U-Net, {name!r} masks {block.name} of another one than those before it"
        )
    # Fixed masks know no widths.
    return replace(known if any(widths(known)) else block, layers=tuple(layers.values()))
