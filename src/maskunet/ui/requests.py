"""What a person asks of the page, and what comes back."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from torch import Tensor

from ..errors import DataError
from ..searching import SearchResult
from .verdicts import Verdict, real, whole

MOST_STEPS, MOST_GUIDANCE, MOST_SEED, MOST_PICTURES, MOST_ANALYSED = 200, 50.0, 2**32 - 1, 16, 600
_LONGEST_PROMPT = 1000
#: Is told which share of the work is done, in [0, 1], and what is being done.
Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Request:
    """What a person asked for.

    Args:
        model: name of a model that is offered.
        prompt: what to draw.
        steps: denoising steps.
        guidance_scale: strength of classifier-free guidance.
        seed: of the first picture's noise.
        masker: name of a masker that is offered; None for the base model.
    """

    model: str
    prompt: str
    steps: int = 25
    guidance_scale: float = 4.0
    seed: int = 0
    masker: str | None = None

    def checked(self) -> Request:
        """Return it with its numbers made whole.

        Raises:
            DataError: no prompt, or a number out of range.
        """
        prompt = " ".join(str(self.prompt or "").split())
        if not prompt or len(prompt) > _LONGEST_PROMPT:
            raise DataError(f"expected a prompt of 1 to {_LONGEST_PROMPT} characters, got {len(prompt)}")
        return replace(
            self,
            prompt=prompt,
            steps=whole(self.steps, "steps", 1, MOST_STEPS),
            guidance_scale=float(real(self.guidance_scale, "guidance", 0, MOST_GUIDANCE)),
            seed=whole(self.seed, "the seed", 0, MOST_SEED),
        )


@dataclass(frozen=True)
class Judged:
    """A picture (3, H, W) in [0, 1], its reward and the judge's verdict; None where there is no reward or judge."""

    picture: Tensor
    reward: float | None
    verdict: Verdict | None


@dataclass(frozen=True)
class Pair:
    """The base model's picture and the masked one, from the noise of the same seed."""

    seed: int
    base: Judged
    masked: Judged


@dataclass(frozen=True)
class Ending:
    """How a search is ended from outside.

    Args:
        stop: when set it ends soon, and what was found so far is kept.
        leave: when set it ends at its next step and nothing is kept: nobody looks any more.
    """

    stop: threading.Event = field(default_factory=threading.Event)
    leave: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class Moment:
    """A search under way, or done.

    Args:
        share: of the denoising steps that are taken, in [0, 1]; of those without the search while `base` is None.
        base: the picture without the search, which is drawn first; None until then.
        curve: rewards of the predicted picture, in the order of the trials.
        judged: the picture that is predicted now, in the end the finished one; None before the first step.
        found: the result, in the end.
        stopped: whether it was ended before its time.
    """

    share: float
    base: Judged | None = None
    curve: tuple[float, ...] = ()
    judged: Judged | None = None
    found: SearchResult | None = None
    stopped: bool = False
