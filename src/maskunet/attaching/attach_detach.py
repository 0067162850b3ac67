"""Attach a masker to a pipeline or a U-Net, in place and reversibly; disable, record and detach it."""

from __future__ import annotations

import contextlib
import numbers
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint import first_not_finite, require_finite
from ..errors import CheckpointError, SettingError, TargetError
from ..maskers import ComposedMasker, Masker, load
from ..targets import check_fits, unet_of
from .attachment import Attachment
from .block_hook import refuse_fused
from .strength import Strengths, check_strength
from .trace import Trace

_ATTRIBUTE = "_maskunet_attachment"

Source = Masker | str | os.PathLike[str]


def _is_compiled(model: Any, unet: nn.Module) -> bool:
    return getattr(model, "unet", model) is not unet or any(
        hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
        for module in unet.modules()
    )


def attachment_of(model: Any) -> Attachment | None:
    """Return the attachment of a model, or None.

    Args:
        model: a pipeline or a U-Net.

    Raises:
        TargetError: there is no U-Net.
    """
    return unet_of(model).__dict__.get(_ATTRIBUTE)


def attach(
    model: Any,
    masker: Source | Mapping[str, Source],
    seed: int | None = None,
    noise: Mapping[str, Tensor] | None = None,
    *,
    strength: Strengths = 1.0,
    compose: str | None = None,
) -> Attachment:
    """Attach a masker to a pipeline or a U-Net, in place; it replaces the attached one.

    Several maskers are attached by name, `attach(pipe, {"style": a, "detail": b})`, and act together as one.
    `attachment.set_maskers("style")` switches them on and off.

    Masks are deterministic by default. With a `seed` they are drawn with Gumbel noise: the same seed, prompt and
    scheduler give the same image. A masker in training mode always draws, with new noise at every call.

    Args:
        model: a Stable Diffusion pipeline (1.x, 2.x, XL) or its U-Net.
        masker: a masker for this U-Net, or its folder, hub id, or bundled name; or several of these by name.
        seed: seed of the Gumbel noise; None draws no noise at inference.
        noise: Gumbel noise by layer name, (B, *weight.shape), which replaces drawn noise.
        strength: how strongly masks act, W (1 - s (1 - m)): 0 is the base model bit for bit, 1 the masks. One number, one
            per block by name, or a function of the timestep. `attachment.strength` changes it later. With several maskers
            the keys of a mapping are their names, {"style": 0.7}, and each strength is one as for a single masker.
        compose: for several maskers: "product" (the default) keeps a weight where all of them keep it, "majority" where at
            least half of them do.

    Returns:
        The attachment; most callers ignore it.

    Raises:
        TargetError: there is no U-Net, the masker was made for another one, or its projections or a LoRA are fused.
        CheckpointError: the masker's files are missing or unreadable, or one of its tensors holds NaN or Inf.
        SettingError: an argument has the wrong type, or noise is not finite.
    """
    unet = unet_of(model)
    masker = (
        _opened_by_name(masker, model, compose) if isinstance(masker, Mapping) else _opened(masker, model, compose)
    )
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, numbers.Integral)):
        raise SettingError(f"expected seed to be an integer or None, got {seed!r:.80}")
    if noise is not None and not isinstance(noise, Mapping):
        raise SettingError(f"expected noise to be a mapping from layer names to tensors, got {type(noise).__name__}")
    if (layer := first_not_finite(noise or {})) is not None:
        raise SettingError(f"expected finite Gumbel noise, that of {layer} holds NaN or Inf")
    # Their masks would be off without a word, since NaN compares as less than any threshold.
    require_finite(masker.tensors(), f"a {type(masker).__name__} to attach", "load or train it again")
    check_strength(strength, masker)
    for block in masker.network.blocks:
        refuse_fused(unet, block)
    detach(model)
    attachment = Attachment(unet, masker, seed, noise, strength)
    attachment.install()
    unet.__dict__[_ATTRIBUTE] = attachment
    if _is_compiled(model, unet):
        torch.compiler.reset()  # graphs compiled so far lack the hooks
    return attachment


def _opened(masker: Any, model: Any, compose: str | None = None) -> Masker:
    """The masker, read from its source if it is one."""
    if compose is not None:
        raise SettingError(
            f"expected several maskers by name with compose={compose!r:.80}, got one; attach them as in "
            "{'style': a, 'detail': b}"
        )
    if isinstance(masker, str | os.PathLike):
        masker = load(masker, model)
    if not isinstance(masker, Masker):
        kind = f"the class {masker.__name__}" if isinstance(masker, type) else type(masker).__name__
        raise SettingError(
            f"expected a masker, its folder, a hub id or a bundled name to attach, got {kind}; build one "
            "with maskunet.LowRankMasker.for_unet(pipe.unet)"
        )
    check_fits(unet_of(model), masker.network)
    return masker


def _opened_by_name(sources: Mapping[str, Any], model: Any, compose: str | None) -> ComposedMasker:
    """The composition of several maskers; errors name the masker."""
    maskers = {}
    for name, source in sources.items():
        try:
            maskers[name] = _opened(source, model)
        except (CheckpointError, SettingError, TargetError) as error:
            raise type(error)(f"masker {name!r:.80}: {error}") from error
    return ComposedMasker(maskers, "product" if compose is None else compose)


def detach(model: Any) -> None:
    """Remove the attached masker, if any; the model then gives the same bits as if none had ever been attached.

    Args:
        model: a pipeline or a U-Net.

    Raises:
        TargetError: there is no U-Net.
    """
    unet = unet_of(model)
    if (attachment := unet.__dict__.pop(_ATTRIBUTE, None)) is not None:
        attachment.remove()
        if _is_compiled(model, unet):
            torch.compiler.reset()


def reattach(model: Any, attachment: Attachment | None) -> None:
    """Restore an earlier attachment of a model.

    Args:
        model: a pipeline or a U-Net.
        attachment: what `attachment_of` returned; None detaches.

    Raises:
        TargetError: there is no U-Net.
    """
    if attachment_of(model) is attachment:
        return
    detach(model)
    if attachment is not None:
        attachment.install()
        unet_of(model).__dict__[_ATTRIBUTE] = attachment


@contextlib.contextmanager
def disabled(model: Any) -> Iterator[None]:
    """Run the base model inside the context, exactly as if detached; contexts can be nested.

    Args:
        model: a pipeline or a U-Net, with or without a masker.

    Raises:
        TargetError: there is no U-Net.
    """
    attachment = attachment_of(model)
    if attachment is None:
        yield
        return
    previous, attachment.enabled = attachment.enabled, False
    try:
        yield
    finally:
        attachment.enabled = previous


@contextlib.contextmanager
def record(model: Any, *, keep: str = "all", limit_gb: float = 4.0) -> Iterator[Trace]:
    """Record logits, masks and densities by layer and call of the U-Net inside the context.

    Args:
        model: a pipeline or a U-Net with a masker.
        keep: the tensors to keep: "all", those of the "last" call, or none ("density").
        limit_gb: memory for the tensors, in GiB; further calls keep densities only, with a warning.

    Yields:
        A `Trace`: `trace.logits[layer]` and `trace.masks[layer]` (B, *weight.shape) of the latest call,
        `trace.density[layer]` with one value per call, and `trace.calls`.

    Raises:
        TargetError: there is no U-Net, or no masker is attached.
        SettingError: there is no such `keep`, or the limit is not a number >= 0.
    """
    attachment = attachment_of(model)
    if attachment is None:
        raise TargetError("expected a model with a masker, none is attached; call maskunet.attach first")
    previous, attachment.trace = attachment.trace, Trace(keep, limit_gb)
    try:
        yield attachment.trace
    finally:
        attachment.trace = previous
