"""The masks of a layer during one call: in the order of the batch's rows, how they are drawn, and how strongly they act."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..errors import TargetError
from ..maskers import BlockInput, ComposedMask, Draw, LayerMask, Masker, parts_of
from ..network import LayerSpec
from .arranged_mask import ArrangedMask, arrange, compute_plainly
from .batch_layout import BatchLayout
from .strength import Strengths, strengths_at

#: Receives the logits of a layer, if there are any, and its masks.
Recorder = Callable[[Tensor | None, Tensor], None]


@dataclass(frozen=True)
class MaskedLayer:
    """The masks of a layer during one call.

    Args:
        mask: its masks.
        draw: how they are drawn.
        batch: rows of its block's batch.
        strength: how strongly they act, in [0, 1].
    """

    mask: LayerMask
    draw: Draw
    batch: int
    strength: float = 1.0

    @classmethod
    def prepare(
        cls,
        mask: LayerMask,
        layer: str,
        masker: Masker,
        draw: Draw,
        batch: int,
        layout: BatchLayout | None,
        strength: float | Mapping[str, float],
    ) -> MaskedLayer:
        """Return the masks of a layer as its rows take them.

        Args:
            mask: what the masker returned.
            layer: name of the layer.
            masker: the masker.
            draw: how the masks are drawn.
            batch: rows of the batch.
            layout: its layout; None where every row has masks of its own, or all share them.
            strength: how strongly the masks act; by name for the maskers of a composition.
        """
        if not isinstance(mask, ComposedMask):
            assert not isinstance(strength, Mapping)
            return cls(mask if layout is None else arrange(mask, layer, masker, layout), draw, batch, strength)
        own = strength if isinstance(strength, Mapping) else {}
        parts = []
        for part in mask.parts:
            # A masker that does not act is as one that is switched off.
            if (s := own.get(part.name, 1.0)) != 0:
                arranged = part.mask if layout is None else arrange(part.mask, layer, part.masker, layout)
                is_masked = None
                if isinstance(arranged, ArrangedMask):
                    is_masked = [index is not None for index in arranged.indices]
                parts.append(replace(part, mask=arranged, strength=s, is_masked=is_masked))
        joint = 1.0 if isinstance(strength, Mapping) else strength
        if not parts:
            return cls(mask, draw, batch, 0.0)
        if len(parts) == 1:  # as if it were attached alone
            tau = parts[0].masker.tau
            return cls(parts[0].mask, replace(draw, tau=tau), batch, own.get(parts[0].name, joint))
        return cls(ComposedMask(parts, mask.compose), draw, batch, joint)

    def factor(self, layer: LayerSpec, module: nn.Module) -> Tensor | None:
        """Return what multiplies the weight, 1 - s (1 - m); None if it is the mask.

        Args:
            layer: the layer.
            module: its module.
        """
        factor = self.mask.factor(layer, module, self.draw, self.batch)
        if self.strength == 1:
            return factor
        factor = self.mask.mask(layer, self.draw, self.batch) if factor is None else factor
        dtype = torch.promote_types(module.weight.dtype, torch.float32)  # type: ignore[arg-type]
        return 1 - self.strength * (1 - factor.to(dtype))

    def run(self, layer: LayerSpec, module: nn.Module, x: Tensor, record: Recorder | None) -> Tensor:
        """Compute the layer.

        Args:
            layer: the layer.
            module: its module.
            x: its inputs (B, ...).
            record: receives its logits and masks; None without a trace.

        Raises:
            TargetError: the layer sees other rows than its block, whose masks are per row.
        """
        if self.strength == 1:
            return self._run_masked(layer, module, x, record)
        plain = compute_plainly(module, x)
        return (
            plain
            if self.strength == 0
            else torch.lerp(plain, self._run_masked(layer, module, x, record), self.strength)
        )

    def _run_masked(self, layer: LayerSpec, module: nn.Module, x: Tensor, record: Recorder | None) -> Tensor:
        if record is None and len(x) == self.batch:
            return self.mask.run(layer, module, x, self.draw, self.batch)
        mask = self.mask.mask(layer, self.draw, self.batch)
        if len(x) != self.batch and mask.ndim > len(layer.shape) and len(mask) > 1:
            raise TargetError(
                f"expected {self.batch} rows in {layer.name}, as in its block, got {len(x)}: its attention splits the "
                "batch, as PAG does. Leave it out of the masker's targets, or out of pag_applied_layers."
            )
        if record is not None:
            record(self.mask.logits(), mask)
        factor = self.mask.factor(layer, module, self.draw, self.batch)
        return self.mask.apply(layer, module, x, mask if factor is None else factor)


def masked_layers(
    masker: Masker,
    strength: Strengths,
    layout: BatchLayout | None,
    draw: Draw,
    block: str,
    inputs: BlockInput,
) -> dict[str, MaskedLayer]:
    """Return the masks of a block's layers in a call, by layer name.

    Args:
        masker: the call's masker; it follows the features to their device.
        strength: how strongly it acts.
        layout: layout of the batch; None where every row has masks of its own, or all share them.
        draw: how masks are drawn.
        block: name of the block.
        inputs: its inputs.
    """
    device, batch = inputs.hidden_states.device, len(inputs.hidden_states)
    for part in parts_of(masker):
        if next((t.device for t in (*part.parameters(), *part.buffers())), device) != device:
            part.to(device)
    masks = masker.block_masks(block, inputs)
    acting = strengths_at(strength, masker, block, inputs.timestep)
    return {name: MaskedLayer.prepare(mask, name, masker, draw, batch, layout, acting) for name, mask in masks.items()}
