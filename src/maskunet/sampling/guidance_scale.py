"""The guidance of a model where the user sets none."""

from __future__ import annotations

from typing import Any

from ..attaching import attachment_of
from ..pipelines import is_bundled
from ..settings import BUNDLED_GUIDANCE_SCALE, GUIDANCE_SCALE


def replaces_guidance(pipe: Any) -> bool:
    """Return whether the attached masks were trained to replace guidance.

    Args:
        pipe: a pipeline.
    """
    attachment = attachment_of(pipe)
    return attachment is not None and attachment.masker.replaced_guidance is not None


def default_guidance_scale(pipe: Any) -> float:
    """Return the strength of classifier-free guidance that every command and function uses for a model by default.

    It is 1, so none, under masks that replace guidance, unless they are disabled.

    Args:
        pipe: a pipeline.
    """
    attachment = attachment_of(pipe)
    if attachment is not None and attachment.enabled and replaces_guidance(pipe):
        return 1.0
    return BUNDLED_GUIDANCE_SCALE if is_bundled(pipe) else GUIDANCE_SCALE
