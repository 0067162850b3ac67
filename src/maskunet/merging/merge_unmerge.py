r"""Write masks into the weights of a U-Net for good, and undo it: :math:`W' = W (1 - s (1 - m))`, in place.

A merged model needs no masker and no hooks. `unmerge` needs what the masks removed: one bit per masked weight, and the
removed values in the weight's dtype. For the 49 M attention weights of SD 1.5's decoder in float16 and a density of 0.9
that is 6 MB + 10 MB, on the CPU.
"""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..attaching import attachment_of
from ..attaching.strength import check_strength
from ..errors import SettingError, TargetError
from ..maskers import ComposedMasker, Masker, load
from ..sampling.supported_pipelines import check_is_pipeline
from ..targets import unet_of
from .mask_choice import constant_masks, majority_masks
from .merged_masks import MergedMasks, bit_sum, merged_masks_of, set_merged_masks
from .weights import writable_weights


def merge(
    model: Any,
    masker: Masker | str | os.PathLike[str],
    strength: float | Mapping[str, float] = 1.0,
    *,
    prompts: Sequence[str] | None = None,
    seeds: Sequence[int] | int = 0,
    num_inference_steps: int = 25,
    guidance_scale: float = 7.5,
) -> MergedMasks:
    """Multiply the weights of a U-Net by masks, in place and without changing their dtype; `unmerge` undoes it.

    A masker whose masks depend on nothing is merged exactly: a `LowRankMasker` without conditions, `FixedMasks` or a
    `MaskTable` of one mask, a `MaskSchedule` of one timestep. Any other loses what its masks depend on. It is merged only
    with `prompts`, from which the pipeline generates one image each: a weight is kept if half or more of the masks of all
    rows and steps keep it.

    Args:
        model: a Stable Diffusion pipeline (1.x, 2.x, XL), or its U-Net if masks depend on nothing.
        masker: a masker for this U-Net, or its folder, hub id, or bundled name.
        strength: how strongly masks act, W (1 - s (1 - m)): one number in [0, 1], or one per block by name.
        prompts: the prompts of the run, for masks that depend on something; others do not need them.
        seeds: one seed per prompt, or the first of consecutive ones.
        num_inference_steps: denoising steps of the run, with the pipeline's scheduler.
        guidance_scale: strength of classifier-free guidance in the run.

    Returns:
        What was merged: its `density`, and its `disagreement`, the mean share of masked weights whose merged mask differs
        from the masker's in that run (0 if masks depend on nothing). The model keeps it for `unmerge`.

    Raises:
        TargetError: the masker was made for another U-Net; masks are merged or attached already; or weights that cannot be
            written in place: offloaded, quantised, shared, or with something fused into them.
        CheckpointError: the masker's files are missing or unreadable.
        SettingError: masks depend on something and there are no prompts, or an argument is out of range.
    """
    unet = unet_of(model)
    masker = _checked_masker(masker, model)
    if callable(strength):
        raise SettingError(
            "expected strength to be one number, or one per block, got a function of the timestep, which weights cannot "
            "follow"
        )
    if isinstance(masker, ComposedMasker) and isinstance(strength, Mapping):
        raise SettingError(f"expected one strength for a composition of maskers to merge, got {dict(strength)!r:.80}")
    check_strength(strength, masker)
    _check_unmasked(model, unet)
    weights = writable_weights(unet, masker.network)
    disagreement = 0.0
    if masker.conditions:
        _check_run(model, masker, prompts)
        masks, disagreement = majority_masks(
            model,
            masker,
            prompts or (),
            seeds=seeds,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
        )
        weights = writable_weights(unet, masker.network)  # offloading may have moved them
    else:
        device = getattr(model, "_execution_device", None) or next(iter(weights.values())).device
        masks = constant_masks(masker, torch.device(device))
    kept = sum(int(mask.sum()) for mask in masks.values())
    density = kept / sum(mask.numel() for mask in masks.values())
    settings = dict(strength) if isinstance(strength, Mapping) else float(strength)
    merged = MergedMasks(type(masker).__name__, masker.network, settings, density, disagreement)
    _write(merged, weights, masks)
    set_merged_masks(unet, merged)
    return merged


def unmerge(model: Any) -> None:
    """Undo `merge`: every weight gets its bits back.

    Args:
        model: the pipeline or U-Net that masks were merged into, or a copy of it.

    Raises:
        TargetError: no masks are merged, or the weights were changed since.
    """
    unet = unet_of(model)
    merged = merged_masks_of(unet)
    if merged is None:
        raise TargetError(
            "expected a model with merged masks, none are merged; a model that was saved after a merge holds nothing to "
            "undo it with"
        )
    weights = writable_weights(unet, merged.network)
    for name, weight in weights.items():
        layer = merged.layers[name]
        if weight.dtype != layer.removed.dtype:
            raise TargetError(
                f"expected weights in {layer.removed.dtype}, as they were merged, {name} is in {weight.dtype}; load the "
                "model again"
            )
        if bit_sum(weight) != layer.bit_sum:
            raise TargetError(
                f"expected the weights that the merge wrote, those of {name} were changed since, by a fused LoRA or by "
                "training; undo that first, or load the model again"
            )
    for name, weight in weights.items():
        with _writing(weight):
            merged.restore(name, weight)
    set_merged_masks(unet, None)


def _checked_masker(masker: Any, model: Any) -> Masker:
    if isinstance(masker, str | os.PathLike):
        masker = load(masker, model)
    if not isinstance(masker, Masker):
        raise SettingError(
            f"expected a masker, its folder, a hub id or a bundled name to merge, got {type(masker).__name__}"
        )
    if masker.training:
        raise SettingError("expected a masker in evaluation mode to merge, got one in training; call masker.eval()")
    return masker


def _check_unmasked(model: Any, unet: nn.Module) -> None:
    """Refuse a second set of masks."""
    if (merged := merged_masks_of(unet)) is not None:
        raise TargetError(
            f"expected a model without merged masks, those of a {merged.masker} are merged; call maskunet.unmerge first"
        )
    if attachment_of(model) is not None:
        raise TargetError(
            "expected a model without a masker to merge into, one is attached; call maskunet.detach first"
        )


def _check_run(model: Any, masker: Masker, prompts: Any) -> None:
    """Refuse to merge masks that depend on something, unless there is a run to take their majority from."""
    if prompts is None:
        raise SettingError(
            f"expected masks that depend on nothing, those of this {type(masker).__name__} depend on the "
            f"{' and the '.join(masker.conditions)}; pass prompts to merge their majority over a run, which loses that"
        )
    check_is_pipeline(model)
    if "image" in inspect.signature(type(model).__call__).parameters:
        raise TargetError(
            f"expected a text-to-image pipeline to take the masks of a run from, got {type(model).__name__}; pass "
            "StableDiffusionPipeline.from_pipe(pipe), which has the same U-Net"
        )


def _write(merged: MergedMasks, weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    """Write all masks, or none."""
    try:
        for name, weight in weights.items():
            with _writing(weight):
                merged.write(name, weight, masks[name].to(weight.device))
    except BaseException:
        for name in merged.layers:
            with _writing(weights[name]):
                merged.restore(name, weights[name])
        raise


def _writing(weight: Tensor) -> contextlib.AbstractContextManager[None]:
    """A context in which a weight can be written, also one that was made in inference mode."""
    is_inference = weight.is_inference() or torch.is_inference_mode_enabled()
    return torch.inference_mode() if is_inference else torch.no_grad()
