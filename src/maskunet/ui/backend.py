"""What the page computes: comparisons, searches and analyses, one at a time, whoever asks.

Every run attaches the masker that was asked for and puts back what was there, under one lock, so that two people's
maskers and seeds never mix.
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
from ..attaching.attachment import attach, attachment_of, detach, reattach
from ..errors import DataError
from ..maskers import Masker
from ..sampling import generate
from ..searching import SearchConfig, SearchResult, SearchStep, search
from .loading import Models
from .requests import MOST_ANALYSED, MOST_PICTURES, Ending, Judged, Moment, Pair, Progress, Request
from .results_folder import Folder
from .verdicts import Verdict, verdicts, whole


class _Left(Exception):  # noqa: N818
    """Nobody looks at the search any more."""


class Studio:
    """Comparisons, searches and analyses with what is offered.

    Args:
        models: what is offered.
        folder: where files go.
        analyses: the module `maskunet.analysis`, or what stands in for it.
    """

    def __init__(self, models: Models, folder: Folder, analyses: Any = None) -> None:
        self.models, self.folder = models, folder
        self.analyses = analyses or analysis
        self._turn = threading.Lock()

    def warm_up(self) -> None:
        """Load the first model with its masker and reward and run them once, so that the first person does not wait.

        Raises:
            MaskUNetError: one of them cannot be loaded.
        """
        model, maskers = self.models.names[0], self.models.masker_names()
        request = Request(model, "a red circle", steps=1)
        pipe, masker = self.models.pipe(model), self.models.masker(maskers[0], model) if maskers else None
        with self._turn, _attached(pipe, masker):
            self._judged(request, _draw(pipe, request, [0], lambda share: None))

    def compare(self, request: Request, progress: Progress) -> Pair:
        """Side one picture without masks and one with, from the same noise.

        Raises:
            MaskUNetError: something asked for is missing, out of range, or does not fit.
        """
        return self.gallery(request, 1, progress)[0]

    def gallery(self, request: Request, count: int, progress: Progress) -> list[Pair]:
        """Side pairs of pictures from the seeds that follow on one another.

        Args:
            request: what to draw, with a masker.
            count: how many pairs, from 1 to 16.
            progress: is told how far it is.

        Raises:
            MaskUNetError: something asked for is missing, out of range, or does not fit.
        """
        request, count = request.checked(), whole(count, "the number of seeds", 1, MOST_PICTURES)
        if request.masker is None:
            raise DataError("expected a masker to compare the base model with, none is chosen")
        progress(0.0, "Loading")
        pipe, masker = self.models.pipe(request.model), self.models.masker(request.masker, request.model)
        seeds, sides = [request.seed + i for i in range(count)], []
        with self._turn:
            for name, chosen, start in (("base", None, 0.0), ("masked", masker, 0.5)):
                with _attached(pipe, chosen):

                    def told(share: float, name: str = name, start: float = start) -> None:
                        progress(start + share / 2, f"Drawing the {name} side")

                    sides.append(self._judged(request, _draw(pipe, request, seeds, told)))
        return [Pair(*parts) for parts in zip(seeds, *sides, strict=True)]

    def search(self, request: Request, preset: str, ending: Ending) -> Iterator[Moment]:
        """Search masks for one picture, and show it as it goes.

        Args:
            request: what to draw; its masker lies under the search.
            preset: a name of `searching.PRESETS`.
            ending: ends it from outside. Leaving the iterator sets `leave`.

        Yields:
            Moments; some are left out where nobody takes them in time. The last has the result.

        Raises:
            MaskUNetError: something asked for is missing, out of range, or does not fit.
        """
        request = request.checked()
        config = SearchConfig.preset(
            preset,
            candidates=1,  # it searches from the very noise whose picture is shown beside
            num_inference_steps=request.steps,
            guidance_scale=request.guidance_scale,
            compare_base=False,  # it is drawn first here, to be looked at meanwhile
        )
        shown: SimpleQueue[Moment | Exception | None] = SimpleQueue()

        def work() -> None:
            try:
                with self._turn:
                    self._search(request, config, ending, shown.put)
            except _Left:
                pass
            except Exception as error:  # raised again where the moments are taken
                shown.put(error)
            finally:
                shown.put(None)

        threading.Thread(target=work, name="search", daemon=True).start()
        try:
            yield from _latest(shown)
        finally:
            ending.leave.set()  # nobody looks any more; not waited for, since whoever lets go may be an event loop

    def _search(self, request: Request, config: SearchConfig, ending: Ending, show: Callable[[Moment], None]) -> None:
        if ending.stop.is_set():
            raise DataError("the search was stopped before it began; nothing was found")
        pipe, reward = self.models.pipe(request.model), self.models.reward(request.model)
        if reward is None:
            raise DataError("expected a reward to search by; start the page with --reward (as image-reward or hpsv2)")
        under = None if request.masker is None else self.models.masker(request.masker, request.model)
        if under is not None and under.guided_half is not None:
            raise DataError(
                f"expected a masker of whole batches under a search, {request.masker!r} masks the conditional half "
                "alone; choose another one or none"
            )

        def step_taken(moment: Moment) -> None:
            show(moment)
            if ending.leave.is_set():
                raise _Left

        with _attached(pipe, under):
            picture = _draw(pipe, request, [request.seed], lambda share: step_taken(Moment(share)))
            base = self._judged(request, picture)[0]
            now = Moment(0.0, base)
            show(now)

            def look(step: SearchStep) -> bool:
                nonlocal now
                seen = self._judged(request, step.preview())[0]
                now = Moment((step.step + 1) / step.steps, base, (*now.curve, seen.reward or 0.0), seen)
                step_taken(now)
                return ending.stop.is_set()

            found = search(pipe, [request.prompt], reward, config, seeds=[request.seed], progress=False, on_step=look)
        rewards = None if base.reward is None else torch.tensor([base.reward])
        found = replace(found, base=picture, base_rewards=rewards)
        show(
            replace(
                now,
                share=1.0,
                judged=self._judged(request, found.tensor)[0],
                found=found,
                stopped=ending.stop.is_set(),
            )
        )

    def keep(self, found: SearchResult | None, name: str) -> str:
        """Keep what a search found, and return the name of its masks among the maskers.

        Raises:
            DataError: nothing was found yet, or it cannot be written.
        """
        if found is None:
            raise DataError("expected a search that found masks; there is none yet to keep")
        return "found/" + self.folder.keep("found", name or found.settings["prompts"][0], found.save)

    def analyse(self, name: str, request: Request, count: int, progress: Progress) -> Any:
        """Run an analysis of a masker, on held-out prompts of the bundled model, on the prompt asked for of another one.

        Args:
            name: one of `maskunet.analysis.NAMES`.
            request: the masker, and how to draw.
            count: pictures a side.
            progress: is told how far it is.

        Returns:
            A `maskunet.analysis.Analysis`.

        Raises:
            MaskUNetError: something asked for is missing, out of range, or does not fit.
        """
        request, count = request.checked(), whole(count, "the number of pictures", 1, MOST_ANALYSED)
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
            count=count,
        )
        with self._turn, _attached(pipe, masker):
            return self.analyses.analyze(name, pipe, settings, progress=progress)

    def keep_analysis(self, analysis: Any, name: str) -> Path:
        """Keep the figure and the table of an analysis, and return their folder.

        Raises:
            DataError: there is none yet, or it cannot be written.
        """
        if analysis is None:
            raise DataError("expected an analysis; there is none yet to keep")
        return self.folder.path / "analyses" / self.folder.keep("analyses", name, analysis.save)

    @torch.no_grad()
    def _judged(self, request: Request, pictures: Tensor) -> list[Judged]:
        """Judge pictures (N, 3, H, W)."""
        reward = self.models.reward(request.model)
        scores: list[float | None] = [None] * len(pictures)
        if reward is not None:
            device = self.models.pipe(request.model)._execution_device
            scores = list(reward(pictures.to(device), request.prompt).float().cpu().tolist())
        judged: list[Verdict | None] = [None] * len(pictures)
        if self.models.is_bundled(request.model):
            judged = list(verdicts(pictures, request.prompt))
        return [Judged(*parts) for parts in zip(pictures, scores, judged, strict=True)]


def _draw(pipe: Any, request: Request, seeds: list[int], told: Callable[[float], None]) -> Tensor:
    return generate(
        pipe,
        [request.prompt] * len(seeds),
        seeds=seeds,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance_scale,
        batch_size=4,
        progress=False,
        on_step=told,
    ).tensor


@contextlib.contextmanager
def _attached(pipe: Any, masker: Masker | None) -> Iterator[None]:
    """Attach a masker, or none, and put back what was there."""
    before = attachment_of(pipe)
    try:
        if masker is None:
            detach(pipe)
        else:
            attach(pipe, masker)
        yield
    finally:
        reattach(pipe, before)


def _latest(shown: SimpleQueue[Moment | Exception | None]) -> Iterator[Moment]:
    """Yield moments until None; of those that wait, the latest alone."""
    waiting: Moment | None = None
    while True:
        item = shown.get()
        if isinstance(item, Moment):
            waiting = item
            if not shown.empty():
                continue
        if waiting is not None:
            yield waiting
            waiting = None
        if isinstance(item, Exception):
            raise item
        if item is None:
            return
