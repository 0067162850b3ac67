"""A form whose rows take its masks in the order of the batch's layout."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ..maskers import Draw, LayerMask, Masker
from ..network import LayerSpec
from .batch_layout import BatchLayout


class ArrangedMask(LayerMask):
    """Masks of a form, one of them or none for each row of a batch.

    Args:
        masks: the form, with M masks or one for all rows.
        indices: mask of each row; None leaves a row unmasked.
    """

    def __init__(self, masks: LayerMask, indices: Sequence[int | None]) -> None:
        self.masks, self.indices = masks, list(indices)

    def logits(self) -> Tensor | None:
        """Return the logits of the form, in its own order; None where it has none."""
        return self.masks.logits()

    def mask(self, layer: LayerSpec, draw: Draw, batch: int) -> Tensor:
        """Return the masks in the order of the rows, (B, *weight.shape); see `LayerMask.mask`."""
        values = self.masks.mask(layer, draw, batch)
        values = values if values.ndim > len(layer.shape) else values[None]
        rows = values[[0 if index is None else index % len(values) for index in self.indices]]
        unmasked = [row for row, index in enumerate(self.indices) if index is None]
        if unmasked:
            rows[unmasked] = 1
        return rows

    def run(self, layer: LayerSpec, module: nn.Module, x: Tensor, draw: Draw, batch: int) -> Tensor:
        """Compute the masked layer; unmasked rows are computed plainly, rows in the form's order by the form itself."""
        masked = [row for row, index in enumerate(self.indices) if index is not None]
        picked = [self.indices[row] for row in masked]
        if len(x) != len(self.indices) or not masked or not _repeats(picked):
            return super().run(layer, module, x, draw, batch)
        if len(masked) == len(x):
            return self.masks.run(layer, module, x, draw, batch)
        plain = [row for row, index in enumerate(self.indices) if index is None]
        outputs = self.masks.run(layer, module, x[masked], draw, len(masked))
        result = outputs.new_empty((len(x), *outputs.shape[1:]))
        result[masked], result[plain] = outputs, compute_plainly(module, x[plain])
        return result


def arrange(mask: LayerMask, layer: str, masker: Masker, layout: BatchLayout) -> LayerMask:
    """Return the masks of a layer in the order of a batch's rows.

    Args:
        mask: the masks.
        layer: name of the layer.
        masker: the masker that they come from.
        layout: layout of the batch.

    Raises:
        TargetError: neither the prompts nor the images are a multiple of the masks.
    """
    indices = layout.mask_indices(masker.count_masks(layer) or 1, masker)
    if mask.offsets is None:
        masked = [index for index in indices if index is not None]
        return mask if len(masked) == len(indices) and _repeats(masked) else ArrangedMask(mask, indices)
    offset = [i if i is None else i + start for i, start in zip(indices, mask.offsets, strict=True)]
    return ArrangedMask(mask, offset)


def _repeats(indices: Sequence[int | None]) -> bool:
    """Whether row r takes mask r mod M, as the forms themselves order them."""
    count = max(index or 0 for index in indices) + 1
    return list(indices) == [row % count for row in range(len(indices))]


def compute_plainly(module: nn.Module, x: Tensor) -> Tensor:
    """Compute a layer without masks.

    Args:
        module: a Linear or Conv2d.
        x: its inputs.
    """
    if isinstance(module, nn.Linear):
        return F.linear(x, module.weight, module.bias)
    assert isinstance(module, nn.Conv2d)
    return module._conv_forward(x, module.weight, module.bias)
