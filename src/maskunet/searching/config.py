"""Settings of a search, and the presets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from ..errors import SettingError
from ..settings import (
    MAX_CANDIDATES,
    MAX_GUIDANCE_SCALE,
    MAX_PIXELS,
    Settings,
    Targets,
    choice,
    counts,
    flag,
    integer,
    layer_targets,
    number,
    text,
)


@dataclass(frozen=True)
class SearchConfig(Settings):
    """Settings of `search`; `SearchConfig()` is the preset "default".

    The defaults were chosen on validation prompts of the bundled model at 15 steps (docs/results/search_variants.md).

    Main:
        num_inference_steps: denoising steps, 1 to 1000.
        guidance_scale: strength of classifier-free guidance; 1 or less switches it off. 7.5, or 4 with the bundled model,
            if None.
        negative_prompt: prompt to steer away from.
        height: height of the images in pixels; the model's own if None.
        width: width of the images in pixels; the model's own if None.
        seed: prompt i starts from the noise of seed + i; with drafts, that is its first candidate.
        candidates: starting noises drafted per prompt; the search starts from the one whose draft has the highest reward.
            1 takes the seed's own noise without drafts.
        targets: layers to mask.
        iterations: optimiser iterations per step: one number for all steps, or a sequence spread evenly over them;
            (0, 4, 0) spends 4 on each step of the middle third. With fewer steps than numbers, a step takes the largest
            of its share.
        learning_rate: AdamW's learning rate for the mask logits.
        time_limit_s: stop drafting and optimising after N seconds and sample on; None for no limit.
        target_reward: a sample leaves a step once it has reached this reward, and keeps its masks; None for never.

    Fine-tuning:
        guidance_rescale: share of the guided output that is rescaled to the conditional one's deviation, in [0, 1].
        halves: masked half of a guided batch: "both" (paper), or "conditional", whose unconditional half is computed once
            per step, so that an iteration costs half.
        preview_size: the reward sees images decoded from latents that are averaged down to about this many pixels per
            side, never below; None decodes them as they are.
        initial_logit: every logit at the start of a step; 1 keeps a weight with probability 0.934 under noise.
        gumbel: draw masks with Gumbel noise; by threshold if false.
        tau: temperature of the straight-through gradient, > 0.
        keep: masks of a step: the "best" iterate by reward, or the "last".
        weight_decay: AdamW's decoupled weight decay.
        patience: a sample leaves a step after N iterations without a higher reward; None for never.
        reuse: cache the unmasked prefix of the U-Net per step; the masks stay the same bit for bit.
        gradient_checkpointing: trade time for memory in the U-Net and the decoder.
        compare_base: also generate the seed's own image, without drafts and masks, and return it where its reward is higher.

    Raises:
        SettingError: a setting is out of range.
    """

    num_inference_steps: int = integer(15, at_least=1, at_most=1000)
    guidance_scale: float | None = number(None, at_least=0, at_most=MAX_GUIDANCE_SCALE, optional=True)
    negative_prompt: str | None = text(None, optional=True)
    height: int | None = integer(None, at_least=8, at_most=MAX_PIXELS, optional=True)
    width: int | None = integer(None, at_least=8, at_most=MAX_PIXELS, optional=True)
    seed: int = integer(0, at_least=0, at_most=2**63 - 1)
    candidates: int = integer(7, at_least=1, at_most=MAX_CANDIDATES)
    targets: Targets = layer_targets("decoder-attention")
    halves: str = choice("conditional", "both")
    preview_size: int | None = integer(256, at_least=8, optional=True)
    iterations: int | Sequence[int] = counts((0, 0, 2, 0, 0))
    learning_rate: float = number(0.3, above=0)
    initial_logit: float = number(2.0)
    gumbel: bool = flag(True)
    tau: float = number(1.0, above=0)
    keep: str = choice("best", "last")
    weight_decay: float = number(0.0, at_least=0)
    patience: int | None = integer(None, at_least=1, optional=True)
    target_reward: float | None = number(None, optional=True)
    time_limit_s: float | None = number(None, above=0, optional=True)
    reuse: bool = flag(True)
    gradient_checkpointing: bool = flag(False)
    compare_base: bool = flag(True)
    guidance_rescale: float = number(0.0, at_least=0, at_most=1)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> SearchConfig:
        """Return a preset, with changes.

        Args:
            name: "default", drafts and then masks; "masks", masks alone from the seed's noise; "fast", the same with
                fewer iterations; "paper", the authors' settings.
            changes: settings to replace, by name.

        Raises:
            SettingError: an unknown preset or setting, or a setting out of range.
        """
        if not isinstance(name, str) or name not in PRESETS:
            raise SettingError(f"expected a preset among {', '.join(PRESETS)}, got {name!r}")
        names = [field.name for field in fields(cls)]
        if unknown := [change for change in changes if change not in names]:
            raise SettingError(f"expected settings of SearchConfig ({', '.join(names)}), got {unknown[0]!r}")
        return cls(**(PRESETS[name] | changes))

    def iterations_at(self, index: int, steps: int) -> int:
        """Return the iterations of a step.

        Args:
            index: index of the step.
            steps: number of denoising steps.
        """
        if isinstance(self.iterations, int):
            return self.iterations
        count = len(self.iterations)
        first = index * count // steps
        # With fewer steps than numbers a step stands for several numbers and takes the largest, so that none is skipped.
        end = max(first + 1, -(-(index + 1) * count // steps)) if steps < count else first + 1
        return max(self.iterations[first:end])


PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "masks": {"candidates": 1, "iterations": (0, 4, 0)},
    "fast": {"candidates": 1, "iterations": (0, 0, 3, 0, 0)},
    # Section 3.4: AdamW at 1e-2; one iteration in each of the first seven of fifteen steps, then ten; the last iterate.
    "paper": {
        "candidates": 1,
        "iterations": (1,) * 7 + (10,) * 8,
        "learning_rate": 1e-2,
        "initial_logit": 1.0,
        "keep": "last",
        "weight_decay": 1e-2,
        "halves": "both",
        "preview_size": None,
        "reuse": False,
    },
}
