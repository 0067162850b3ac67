"""What the page computes: comparisons, searches and analyses, one at a time for all visitors.

Every run attaches the requested masker and restores the previous one, under one lock, so that two visitors' maskers and
seeds never mix.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor

from .. import analysis
from ..attaching import attach, attachment_of, detach, reattach
from ..errors import DataError, SettingError
from ..maskers import Masker
from ..sampling import generate
from ..searching import SearchConfig, SearchResult, SearchState, search
from .offered_models import OfferedModels
from .requests import (
    MAX_IMAGES,
    ComparisonPair,
    ProgressCallback,
    Request,
    ScoredImage,
    SearchControl,
    SearchProgress,
    latest_states,
)
from .results_folder import ResultsFolder
from .verdicts import Verdict, verdicts


class _AbandonedError(Exception):
    """The visitor of a search has left."""


class Backend:
    """Comparisons, searches and analyses with the offered models.

    Args:
        models: the offered models, maskers and rewards.
        folder: where files go.
        analyses: the module `maskunet.analysis`, or a stand-in for it.
    """

    def __init__(self, models: OfferedModels, folder: ResultsFolder, analyses: Any = None) -> None:
        self.models, self.folder = models, folder
        self.analyses = analyses or analysis
        self._lock = threading.Lock()

    def warm_up(self) -> None:
        """Load the first model with its masker and reward and run them once, so that the first visitor need not wait.

        Raises:
            MaskUNetError: one of them cannot be loaded.
        """
        model, maskers = self.models.names[0], self.models.masker_names()
        request = Request(model, "a red circle", steps=1)
        pipe, masker = self.models.pipe(model), self.models.masker(maskers[0], model) if maskers else None
        with self._lock, _attached(pipe, masker):
            self._score(request, _generate(pipe, request, [0], lambda share: None))

    def compare(self, request: Request, progress: ProgressCallback) -> ComparisonPair:
        """Generate one image without masks and one with, from the same noise.

        Args:
            request: what to generate, with a masker.
            progress: called with the finished share of the work.

        Raises:
            MaskUNetError: something requested is missing or does not fit.
        """
        return self.gallery(replace(request, count=1), progress)[0]

    def gallery(self, request: Request, progress: ProgressCallback) -> list[ComparisonPair]:
        """Generate pairs of images from `request.count` consecutive seeds.

        Args:
            request: what to generate, with a masker; at most 16 seeds.
            progress: called with the finished share of the work.

        Raises:
            MaskUNetError: something requested is missing or does not fit.
        """
        if request.count > MAX_IMAGES:
            raise SettingError(f"expected at most {MAX_IMAGES} seeds, got {request.count}")
        if request.masker is None:
            raise DataError("expected a masker to compare the base model with, none is chosen")
        progress(0.0, "Loading")
        pipe, masker = self.models.pipe(request.model), self.models.masker(request.masker, request.model)
        seeds, sides = [request.seed + i for i in range(request.count)], []
        with self._lock:
            for name, side_masker, start in (("base", None, 0.0), ("masked", masker, 0.5)):
                with _attached(pipe, side_masker):

                    def report(share: float, name: str = name, start: float = start) -> None:
                        progress(start + share / 2, f"Generating the {name} side")

                    sides.append(self._score(request, _generate(pipe, request, seeds, report)))
        return [ComparisonPair(*parts) for parts in zip(seeds, *sides, strict=True)]

    def search(self, request: Request, preset: str, control: SearchControl) -> Iterator[SearchProgress]:
        """Search masks for one image, and show the search as it runs.

        Args:
            request: what to generate; its masker lies under the search.
            preset: a name of `searching.PRESETS`.
            control: ends the search from outside. Leaving the iterator abandons it.

        Yields:
            States of the search; those that are not consumed in time are skipped. The last one has the result.

        Raises:
            MaskUNetError: something requested is missing or does not fit.
        """
        config = SearchConfig.preset(
            preset,
            num_inference_steps=request.steps,
            guidance_scale=request.guidance_scale,
            compare_base=False,  # the base image is generated first and shown during the search
        )
        states: SimpleQueue[SearchProgress | Exception | None] = SimpleQueue()

        def work() -> None:
            try:
                with self._lock:
                    self._search(request, config, control, states.put)
            except _AbandonedError:
                pass
            except Exception as error:  # raised again in the visitor's thread
                states.put(error)
            finally:
                states.put(None)

        threading.Thread(target=work, name="search", daemon=True).start()
        try:
            yield from latest_states(states)
        finally:
            control.abandon.set()  # not waited for: an event loop may be what closes the iterator

    def _search(
        self,
        request: Request,
        config: SearchConfig,
        control: SearchControl,
        show: Callable[[SearchProgress], None],
    ) -> None:
        if control.stop.is_set():
            raise DataError("the search was stopped before it began; nothing was found")
        pipe, reward = self.models.pipe(request.model), self.models.reward(request.model)
        if reward is None:
            raise DataError(
                "expected a reward to search by; start the page with --reward (such as image-reward or hpsv2)"
            )
        masker = None if request.masker is None else self.models.masker(request.masker, request.model)
        if masker is not None and masker.guided_half is not None:
            raise DataError(
                f"expected a masker of whole batches under a search, {request.masker!r} masks the conditional half "
                "alone; choose another one or none"
            )

        def show_or_leave(state: SearchProgress) -> None:
            show(state)
            if control.abandon.is_set():
                raise _AbandonedError

        with _attached(pipe, masker):
            base_image = _generate(pipe, request, [request.seed], lambda share: show_or_leave(SearchProgress(share)))
            base = self._score(request, base_image)[0]
            state = SearchProgress(0.0, base)
            show(state)

            def on_step(step: SearchState) -> bool:
                nonlocal state
                current = self._score(request, step.preview())[0]
                rewards = (*state.rewards, current.reward or 0.0)
                state = SearchProgress((step.step + 1) / step.steps, base, rewards, current)
                show_or_leave(state)
                return control.stop.is_set()

            result = search(
                pipe, [request.prompt], reward, config, seeds=[request.seed], progress=False, on_step=on_step
            )
        if base.reward is None:
            result = replace(result, base=base_image)
        else:
            result = result.better_of(base_image, torch.tensor([base.reward]))
        current = self._score(request, result.tensor)[0]
        show(replace(state, share=1.0, current=current, result=result, is_stopped=control.stop.is_set()))

    def save_masks(self, result: SearchResult | None, name: str) -> str:
        """Save a search's result, and return the name of its masks among the maskers.

        Args:
            result: the result of a search; None before one has ended.
            name: what the visitor calls it; the prompt if empty.

        Raises:
            DataError: there is no result yet, or it cannot be written.
        """
        if result is None:
            raise DataError("expected a search that found masks; there is none yet to keep")
        return "found/" + self.folder.save("found", name or result.prompts[0], result.save)

    def analyse(self, name: str, request: Request, progress: ProgressCallback) -> Any:
        """Run an analysis of a masker: on held-out prompts of the bundled model, on the request's prompt of another.

        Args:
            name: one of `maskunet.analysis.NAMES`.
            request: the masker, how to generate, and how many images per side.
            progress: called with the finished share of the work.

        Returns:
            A `maskunet.analysis.Analysis`.

        Raises:
            MaskUNetError: something requested is missing or does not fit.
        """
        if name not in self.analyses.NAMES:
            raise DataError(f"expected an analysis among {', '.join(self.analyses.NAMES)}, got {name!r}")
        if request.masker is None:
            raise DataError("expected a masker to analyse, none is chosen")
        progress(0.0, "Loading")
        pipe, masker = self.models.pipe(request.model), self.models.masker(request.masker, request.model)
        settings = self.analyses.AnalysisSettings(
            prompts=None if self.models.is_bundled(request.model) else (request.prompt,),
            num_inference_steps=request.steps,
            guidance_scale=request.guidance_scale,
            seed=request.seed,
            count=request.count,
        )
        with self._lock, _attached(pipe, masker):
            return self.analyses.analyze(name, pipe, settings, progress=progress)

    def save_analysis(self, analysis: Any, name: str) -> Path:
        """Save the figure and the table of an analysis, and return their folder.

        Args:
            analysis: the analysis; None before one has ended.
            name: what to call it.

        Raises:
            DataError: there is none yet, or it cannot be written.
        """
        if analysis is None:
            raise DataError("expected an analysis; there is none yet to keep")
        return self.folder.path / "analyses" / self.folder.save("analyses", name, analysis.save)

    @torch.no_grad()
    def _score(self, request: Request, images: Tensor) -> list[ScoredImage]:
        """Reward and judge images (N, 3, H, W)."""
        reward = self.models.reward(request.model)
        scores: list[float | None] = [None] * len(images)
        if reward is not None:
            device = self.models.pipe(request.model)._execution_device
            scores = list(reward(images.to(device), request.prompt).float().cpu().tolist())
        judged: list[Verdict | None] = [None] * len(images)
        if self.models.is_bundled(request.model):
            judged = list(verdicts(images, request.prompt))
        return [ScoredImage(*parts) for parts in zip(images, scores, judged, strict=True)]


def _generate(pipe: Any, request: Request, seeds: list[int], report: Callable[[float], None]) -> Tensor:
    return generate(
        pipe,
        [request.prompt] * len(seeds),
        seeds=seeds,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance_scale,
        batch_size=4,
        progress=False,
        on_step=report,
    ).tensor


@contextlib.contextmanager
def _attached(pipe: Any, masker: Masker | None) -> Iterator[None]:
    """Attach a masker, or none, and restore the previous one afterwards."""
    previous = attachment_of(pipe)
    try:
        if masker is None:
            detach(pipe)
        else:
            attach(pipe, masker)
        yield
    finally:
        reattach(pipe, previous)
