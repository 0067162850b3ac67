"""A pipeline for the time of a search: frozen, and afterwards as it was, whatever happened."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from ..attachment import attach, attachment_of, detach
from ..freezing import frozen
from .config import SearchConfig


@contextlib.contextmanager
def prepared(pipe: Any, config: SearchConfig, decoder: Any) -> Iterator[None]:
    """Freeze every part, switch checkpointing on, and leave the pipeline as it was."""
    attached = attachment_of(pipe)
    checkpointed = [
        m for m in (pipe.unet, pipe.vae) if config.gradient_checkpointing and not m.is_gradient_checkpointing
    ]
    upcast = pipe.vae.dtype == torch.float16 and getattr(pipe.vae.config, "force_upcast", False)
    try:
        with frozen(pipe, *([] if decoder is None else [decoder])):
            for part in checkpointed:
                part.enable_gradient_checkpointing()
            if upcast:  # SDXL's decoder overflows in half precision
                pipe.vae.to(torch.float32)
            yield
    finally:
        if attached is None:
            detach(pipe)
        elif attachment_of(pipe) is not attached:
            attach(pipe, attached.masker, noise=attached.noise).reseed(attached.seed)
        if upcast:
            pipe.vae.to(torch.float16)
        for part in checkpointed:
            part.disable_gradient_checkpointing()
