"""Which row of a U-Net's batch belongs to which prompt and to which part of a guided batch.

diffusers stacks the parts of a guided batch (unconditional first, in most pipelines) and, inside each, the images of one
prompt after another: a a b b. The layout is read from the calling pipeline at every call, because guidance may be switched
off during a run. Without a pipeline, equal latents in both halves show a guided batch.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import TargetError
from ..maskers import Masker

UNCONDITIONAL, CONDITIONAL, IMAGE, PERTURBED = "unconditional", "conditional", "image", "perturbed"
#: Parts that see the prompt: masks of the conditional half apply to them.
_WITH_PROMPT = (CONDITIONAL, PERTURBED)


@dataclass(frozen=True)
class BatchLayout:
    """The rows of a batch.

    Args:
        parts: the part of each row.
        prompts: the prompt of each row, from 0.
        images: the image of each row among those of its part, from 0.
        num_prompts: number of prompts.
    """

    parts: tuple[str, ...]
    prompts: tuple[int, ...]
    images: tuple[int, ...]
    num_prompts: int

    @classmethod
    def stacked(cls, parts: Sequence[str], prompts: int, images_per_prompt: int = 1) -> BatchLayout:
        """Return the layout of parts stacked one after another, each with the images of one prompt after another.

        Args:
            parts: the parts in order.
            prompts: number of prompts.
            images_per_prompt: rows per prompt and part.
        """
        each = range(prompts * images_per_prompt)
        return cls(
            tuple(part for part in parts for _ in each),
            tuple(i // images_per_prompt for _ in parts for i in each),
            tuple(i for _ in parts for i in each),
            prompts,
        )

    def mask_indices(self, count: int, masker: Masker) -> list[int | None]:
        """Return the mask of each row; None for a row without masks.

        Args:
            count: number of masks per layer: one for all, one per prompt (or a divisor), or one per image.
            masker: the masker, which may mask the conditional half alone.

        Raises:
            TargetError: neither the prompts nor the images are a multiple of the masks.
        """
        owners = self.prompts
        if self.num_prompts % count and count == max(self.images) + 1:
            owners = self.images
        elif self.num_prompts % count:
            masker.check_prompt_count(self.num_prompts)
        half = masker.guided_half
        return [
            owner % count if half is None or part in _WITH_PROMPT else None
            for part, owner in zip(self.parts, owners, strict=True)
        ]


logger = logging.getLogger(__name__)
_given: contextvars.ContextVar[BatchLayout | None] = contextvars.ContextVar("layout", default=None)


@contextlib.contextmanager
def batch_layout(layout: BatchLayout) -> Iterator[None]:
    """State the layout of the U-Net calls inside the context, for loops that are no pipeline.

    Args:
        layout: the layout.
    """
    token = _given.set(layout)
    try:
        yield
    finally:
        _given.reset(token)


@torch.compiler.disable  # type: ignore[untyped-decorator, unused-ignore]
def find_layout(unet: nn.Module, masker: Masker, latents: Tensor) -> BatchLayout:
    """Return the layout of a call's batch.

    Args:
        unet: the U-Net.
        masker: the attached masker.
        latents: the U-Net's input (rows, C, h, w); of a video (videos, C, frames, h, w), or (videos, frames, C, h, w) as
            Stable Video Diffusion has it.

    Raises:
        TargetError: the calling pipeline's batch has another number of rows than is known of it.
    """
    frames = _count_frames(unet, latents)
    rows = len(latents) * frames
    if (layout := _given.get()) is not None:
        return layout
    if (frame := _calling_pipeline(unet)) is not None and (layout := _layout_of(frame, rows)) is not None:
        return layout
    half = len(latents) // 2
    if masker.guided_half is not None and len(latents) % 2:
        raise TargetError(
            f"expected a guided batch of two halves for masks of the conditional half, got {rows} rows; use a "
            "guidance_scale above 1"
        )
    is_guided = masker.guided_half is not None or (
        len(latents) % 2 == 0 and torch.equal(latents[:half], latents[half:])
    )
    parts = (UNCONDITIONAL, CONDITIONAL) if is_guided else (CONDITIONAL,)
    return BatchLayout.stacked(parts, len(latents) // len(parts), frames)


def is_guided_call(unet: nn.Module) -> bool:
    """Return whether the pipeline or loop that calls the U-Net guides its samples; False if neither is known.

    Args:
        unet: the U-Net.
    """
    if (layout := _given.get()) is not None:
        return UNCONDITIONAL in layout.parts
    frame = _calling_pipeline(unet)
    return frame is not None and UNCONDITIONAL in _parts(frame.f_locals["self"], frame.f_locals)


def warn_of_guidance(masker: Masker) -> None:
    """Warn of a guided call under masks that replace guidance.

    Args:
        masker: the masker.
    """
    logger.warning(
        "these masks already do the work of guidance (scale %g), this call guides once more: expected guidance_scale=1, "
        "which also halves the time",
        masker.replaced_guidance,
    )


def _count_frames(unet: nn.Module, latents: Tensor) -> int:
    """Frames per video, each a row of the blocks' batch; 1 of an image."""
    if latents.ndim != 5:
        return 1
    return latents.shape[1 if "SpatioTemporal" in type(unet).__name__ else 2]


def _calling_pipeline(unet: nn.Module) -> FrameType | None:
    """The frame of the pipeline call that this U-Net call belongs to; several pipelines may share a U-Net."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_name == "__call__" and code.co_varnames[:1] == ("self",):
            caller = frame.f_locals.get("self")
            network = getattr(caller, "unet", None)
            if hasattr(caller, "scheduler") and getattr(network, "_orig_mod", network) is unet:
                return frame
        frame = frame.f_back
    return None


def _layout_of(frame: FrameType, rows: int) -> BatchLayout | None:
    """The layout of a pipeline's batch; None if its number of prompts is unknown."""
    variables = frame.f_locals
    pipe = variables["self"]
    prompts = variables.get("batch_size")
    if not isinstance(prompts, int) or prompts < 1:
        return None
    images_per_prompt = variables.get("num_images_per_prompt") or variables.get("num_videos_per_prompt") or 1
    frames = variables.get("video_length") or variables.get("num_frames") or 1
    parts = _parts(pipe, variables)
    unit = len(parts) * prompts * images_per_prompt
    repeats, odd = divmod(rows, unit)
    has_views = "Panorama" in type(pipe).__name__
    if odd or not repeats or not (repeats in (1, frames) or has_views):
        raise TargetError(
            f"expected {unit} rows of {type(pipe).__name__} ({prompts} prompts, {images_per_prompt} images per prompt, "
            f"parts {', '.join(parts)}), got {rows}; masks that differ by prompt or half do not fit this pipeline, attach "
            "one mask for all (select or merge a MaskSchedule)"
        )
    if has_views:  # each view's parts follow one another
        return BatchLayout(tuple(parts) * (rows // len(parts)), (0,) * rows, (0,) * rows, 1)
    return BatchLayout.stacked(parts, prompts, images_per_prompt * repeats)


def _parts(pipe: Any, variables: dict[str, Any]) -> tuple[str, ...]:
    """Parts of a pipeline's guided batch in the order of its rows."""
    is_guided = variables.get("do_classifier_free_guidance", getattr(pipe, "do_classifier_free_guidance", False))
    if "InstructPix2Pix" in type(pipe).__name__ and is_guided:
        return (CONDITIONAL, IMAGE, UNCONDITIONAL)
    parts = ((UNCONDITIONAL,) if is_guided else ()) + (CONDITIONAL,)
    return parts + ((PERTURBED,) if getattr(pipe, "do_perturbed_attention_guidance", False) else ())
