"""The masks to merge: the masker's own where they depend on nothing, else their majority over runs of a sampler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..attaching import Attachment, Trace, attach, detach
from ..attaching.trace import CallRecord
from ..errors import CheckpointError, TargetError
from ..maskers import BlockInput, Draw, Masker
from ..sampling import generate


def constant_masks(masker: Masker, device: torch.device) -> dict[str, Tensor]:
    """Return the masks of a masker that depends on nothing, boolean, by layer.

    Args:
        masker: the masker.
        device: device that computes them.

    Raises:
        CheckpointError: the masker holds NaN or infinite numbers.
    """
    for name, tensor in masker.tensors().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise CheckpointError(f"expected a masker of finite numbers, got others in {name}")
    masker.to(device)
    nothing = torch.zeros(1, 1, 1, 1, device=device)
    inputs = BlockInput(nothing, None, nothing.flatten(1))
    masks = {}
    with torch.no_grad():
        for block in masker.network.blocks:
            forms = masker.block_masks(block.name, inputs)
            for layer in block.layers:
                masks[layer.name] = forms[layer.name].mask(layer, Draw(masker.tau), 1).reshape(layer.shape) != 0
    return masks


class _MaskCounts(Trace):
    """Counts how often each weight is kept, over rows and calls.

    Args:
        attachment: the attachment that is traced.
    """

    def __init__(self, attachment: Attachment) -> None:
        super().__init__("density")
        self.attachment = attachment
        self.kept: dict[str, Tensor] = {}
        #: Masks by layer, and rows without masks beside them.
        self.masked: dict[str, int] = {}
        self.plain: dict[str, int] = {}

    def add(self, call: CallRecord, layer: str, logits: Tensor | None, mask: Tensor, ndim: int) -> None:
        """Count the masks of a layer; see `Trace.add`."""
        rows = mask.detach() if mask.ndim > ndim else mask.detach()[None]
        masked = self._masked_rows(layer, len(rows))
        kept = (rows[masked] != 0).sum(0, dtype=torch.int32).cpu()
        self.kept[layer] = self.kept[layer].add_(kept) if layer in self.kept else kept
        self.masked[layer] = self.masked.get(layer, 0) + len(masked)
        self.plain[layer] = self.plain.get(layer, 0) + len(rows) - len(masked)

    def _masked_rows(self, layer: str, count: int) -> list[int]:
        """Rows that have a mask, where the masker leaves others unmasked."""
        masker, call = self.attachment.masker, self.attachment.call
        if masker.guided_half is None or call is None or call.layout is None:
            return list(range(count))
        indices = call.layout.mask_indices(masker.count_masks(layer) or 1, masker)
        if len(indices) != count:
            return list(range(count))
        return [row for row, index in enumerate(indices) if index is not None]


def majority_masks(
    pipe: Any, masker: Masker, prompts: Sequence[str], **options: Any
) -> tuple[dict[str, Tensor], float]:
    """Run a pipeline with a masker; return the masks that half or more of all rows and steps have, and what they lose.

    Rows that a masker of the conditional half leaves unmasked do not vote, but count in what is lost.

    Args:
        pipe: the pipeline, without a masker.
        masker: the masker.
        prompts: the prompts of the run.
        options: options of `maskunet.sampling.generate`.

    Returns:
        The masks by layer, boolean, and the mean share of weights whose mask differs from the masker's.

    Raises:
        TargetError: the masker does not fit the pipeline or its prompts, or a masked layer was not called.
    """
    counts = _MaskCounts(attach(pipe, masker))
    counts.attachment.trace = counts
    try:
        batch_size = max(masker.mask_counts, default=4)
        generate(pipe, prompts, batch_size=batch_size, progress=False, **options)
    finally:
        detach(pipe)
    missing = [layer.name for layer in masker.network.layers if layer.name not in counts.kept]
    if missing:
        raise TargetError(f"expected a run through every masked layer, {missing[0]} was not called in it")
    masks = {name: 2 * kept >= counts.masked[name] for name, kept in counts.kept.items()}
    return masks, _disagreement(counts, masks)


def _disagreement(counts: _MaskCounts, masks: Mapping[str, Tensor]) -> float:
    total = weights = 0.0
    for name, mask in masks.items():
        rows = counts.masked[name] + counts.plain[name]
        kept = counts.kept[name].double() + counts.plain[name]  # an unmasked row keeps every weight
        total += float(torch.where(mask, rows - kept, kept).sum()) / rows
        weights += mask.numel()
    return total / weights
