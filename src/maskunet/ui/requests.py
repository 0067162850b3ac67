"""Requests of the page to its backend, and their results."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from queue import SimpleQueue

from torch import Tensor

from ..errors import SettingError
from ..searching import SearchResult
from ..settings import Settings, integer, number
from ..zoo import defaults
from .verdicts import Verdict

MAX_STEPS, MAX_GUIDANCE, MAX_SEED, MAX_IMAGES, MAX_ANALYSED = 200, 50.0, 2**32 - 1, 16, 600
_MAX_PROMPT_LENGTH = 1000
#: Called with the finished share of the work, in [0, 1], and the current task.
ProgressCallback = Callable[[float, str], None]


@dataclass(frozen=True)
class Request(Settings):
    """A run that a visitor requests.

    Args:
        model: name of an offered model.
        prompt: the caption, 1 to 1000 characters.
        steps: denoising steps, 1 to 200.
        guidance_scale: strength of classifier-free guidance, 0 to 50; the model's default if None.
        seed: seed of the first image's noise.
        masker: name of an offered masker; None for the base model.
        count: images, of consecutive seeds.

    Raises:
        SettingError: no prompt, or a number out of range.
    """

    model: str
    prompt: str
    steps: int = integer(defaults.NUM_INFERENCE_STEPS, at_least=1, at_most=MAX_STEPS)
    guidance_scale: float | None = number(None, at_least=0, at_most=MAX_GUIDANCE, optional=True)
    seed: int = integer(0, at_least=0, at_most=MAX_SEED)
    masker: str | None = None
    count: int = integer(1, at_least=1, at_most=MAX_ANALYSED)

    def check(self) -> None:
        """Refuse an empty or overlong prompt."""
        if not 1 <= len(self.prompt.strip()) <= _MAX_PROMPT_LENGTH:
            raise SettingError(
                f"expected a prompt of 1 to {_MAX_PROMPT_LENGTH} characters, got {len(self.prompt.strip())}"
            )


@dataclass(frozen=True)
class ScoredImage:
    """An image with its reward and the judge's verdict.

    Args:
        image: (3, H, W) in [0, 1].
        reward: its reward; None without one.
        verdict: the judge's verdict; None where the judge does not know the model's world.
    """

    image: Tensor
    reward: float | None
    verdict: Verdict | None


@dataclass(frozen=True)
class ComparisonPair:
    """The base model's image and the masked one, from the noise of the same seed.

    Args:
        seed: the seed.
        base: the base model's image.
        masked: the masked image.
    """

    seed: int
    base: ScoredImage
    masked: ScoredImage


@dataclass(frozen=True)
class SearchControl:
    """Flags that end a search from another thread.

    Args:
        stop: once set, the search ends soon and keeps the masks so far.
        abandon: once set, the search ends at its next step and keeps nothing: its visitor has left.
    """

    stop: threading.Event = field(default_factory=threading.Event)
    abandon: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class SearchProgress:
    """The state of a search, under way or finished.

    Args:
        share: share of the denoising steps taken, in [0, 1]; of the base image's steps while `base` is None.
        base: the image without the search, which is generated first; None until then.
        rewards: reward of the predicted image at each trial.
        current: the image predicted now, at the end the finished one; None before the first step.
        result: the result; None until the end.
        is_stopped: whether a visitor ended it early.
    """

    share: float
    base: ScoredImage | None = None
    rewards: tuple[float, ...] = ()
    current: ScoredImage | None = None
    result: SearchResult | None = None
    is_stopped: bool = False


def latest_states(states: SimpleQueue[SearchProgress | Exception | None]) -> Iterator[SearchProgress]:
    """Yield states until None; if several are waiting, only the latest.

    Args:
        states: states as they come; an exception among them is raised.
    """
    waiting: SearchProgress | None = None
    while True:
        item = states.get()
        if isinstance(item, SearchProgress):
            waiting = item
            if not states.empty():
                continue
        if waiting is not None:
            yield waiting
            waiting = None
        if isinstance(item, Exception):
            raise item
        if item is None:
            return
