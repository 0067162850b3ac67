"""Run an analysis by name on the masks that are attached to a pipeline."""

from __future__ import annotations

import importlib
import time
from dataclasses import replace
from typing import Any

import torch

from ..attaching import attachment_of, reattach
from ..errors import SettingError, TargetError
from .base import NAMES, Analysis, AnalysisSettings, Progress
from .context import build_context

#: Module and default number of images of each analysis; a new one is a module with `study`, and a line here.
_STUDIES = {
    "random": ("random_masks", 24),
    "density": ("density", 48),
    "masks": ("overlap", 12),
    "weights": ("magnitudes", 24),
    "emergence": ("emergence", 48),
    "samples": ("embedding", 144),
}


def analyze(
    name: str, pipe: Any, settings: AnalysisSettings | None = None, *, progress: Progress | None = None
) -> Analysis:
    """Analyse the masks that are attached to a pipeline: a trained masker's, a search result's, any masker's.

    Args:
        name: one of `NAMES`.
        pipe: a Stable Diffusion pipeline (1.x, 2.x, XL) with a masker attached; `random` needs none. It is left as it was.
        settings: settings of the analysis; the defaults if None.
        progress: called with the finished share of the work, in [0, 1], and the current task.

    Returns:
        The analysis; its `save` writes files.

    Raises:
        SettingError: an unknown name, no prompts, or a setting out of range.
        TargetError: no masker is attached, or its masks are switched off.
    """
    if name not in NAMES:
        raise SettingError(f"expected an analysis ({', '.join(NAMES)}), got {name!r}")
    settings = settings or AnalysisSettings()
    attachment = attachment_of(pipe)
    if name != "random" and (attachment is None or not attachment.enabled):
        problem = "none is" if attachment is None else "its masks are switched off by maskunet.disabled"
        raise TargetError(
            f"expected a pipeline with a masker attached, {problem}; call maskunet.attach first (--masker)"
        )
    module, count = _STUDIES[name]
    study = importlib.import_module(f".{module}", __package__).study
    report = progress or (lambda share, task: None)
    start, processor_start = time.monotonic(), time.process_time()
    context = build_context(pipe, settings, count, report)
    try:
        with torch.no_grad():
            analysis: Analysis = study(context)
    finally:
        reattach(pipe, attachment)
    report(1.0, "done")
    # The clock alone would measure the other load of a shared machine.
    times = {"seconds": time.monotonic() - start, "processor_seconds": time.process_time() - processor_start}
    return replace(analysis, settings=analysis.settings | {name: round(value, 1) for name, value in times.items()})
