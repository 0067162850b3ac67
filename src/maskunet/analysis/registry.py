"""Run an analysis by name on whatever is attached to a pipeline, and leave the pipeline as it was."""

from __future__ import annotations

import importlib
import time
from dataclasses import replace
from typing import Any

import torch

from ..attaching.attachment import attachment_of, reattach
from ..errors import DataError, TargetError
from .base import NAMES, Analysis, AnalysisSettings, Progress
from .context import choose_subject

#: Module and number of pictures by default of each analysis; adding one is a module with `study` and a line here.
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
    """Analyse whatever is attached to a pipeline: a trained masker, a search result, any masker.

    Args:
        name: one of `NAMES`.
        pipe: a Stable Diffusion pipeline (1.x, 2.x, XL) with a masker attached; `random` needs none and brings its own.
        settings: settings of the analysis.
        progress: called now and then with the share that is done, in [0, 1], and what is being done.

    Returns:
        The analysis; nothing is written before its `save` is called. The pipeline is left as it was.

    Raises:
        DataError: an unknown name, no prompts, or a setting out of range.
        TargetError: no masker is attached, or its masks are switched off.
    """
    if name not in NAMES:
        raise DataError(f"expected an analysis ({', '.join(NAMES)}), got {name!r}")
    settings = settings or AnalysisSettings()
    attachment = attachment_of(pipe)
    if name != "random" and (attachment is None or not attachment.enabled):
        what = "none is" if attachment is None else "its masks are switched off by maskunet.disabled"
        raise TargetError(f"expected a pipeline with a masker attached, {what}; call maskunet.attach first (--masker)")
    module, count = _STUDIES[name]
    study = importlib.import_module(f".{module}", __package__).study
    tell = progress or (lambda share, word: None)
    started, busy = time.monotonic(), time.process_time()
    subject = choose_subject(pipe, settings, count, tell)
    try:
        with torch.no_grad():
            found: Analysis = study(subject)
    finally:
        reattach(pipe, attachment)
    tell(1.0, "done")
    # On a shared machine the processor's time says more than the clock's.
    took = {"seconds": time.monotonic() - started, "processor_seconds": time.process_time() - busy}
    return replace(found, settings=found.settings | {name: round(value, 1) for name, value in took.items()})
