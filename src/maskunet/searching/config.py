"""Settings of a search, and the presets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import SettingError
from ..settings import Settings, Targets, choice, counts, flag, integer, layer_targets, number, text


@dataclass(frozen=True)
class SearchConfig(Settings):
    """Settings of `search`; a fresh one is the preset "default".

    They were chosen on validation prompts of the bundled model at 15 steps (docs/results/search_variants.md).

    Args:
        num_inference_steps: denoising steps.
        guidance_scale: strength of classifier-free guidance; 1 or less switches it off.
        negative_prompt: what to steer away from.
        height, width: size in pixels; the model's own if None.
        seed: prompt i starts from the noise of seed + i, or has it as its first candidate.
        candidates: starting noises drafted per prompt, that of its seed first; the search starts from the one whose draft
            has the highest reward. 1 takes the seed's own noise and drafts nothing.
        targets: which layers are masked.
        halves: which half of a guided batch is masked: "both" (paper), or the "conditional" one, whose unconditional half
            is computed once per step, so that an iteration costs half.
        preview_size: the reward sees images decoded from latents averaged down to about this many pixels per side, never
            below; None decodes them whole.
        iterations: optimiser iterations per step: one number for all steps, or a sequence spread evenly over them;
            (0, 4, 0) spends 4 on each step of the middle third. Where steps are fewer than numbers, a step takes the most
            of its share.
        learning_rate: AdamW's rate on the mask logits.
        initial_logit: every logit at the start of a step; 1 keeps a weight with probability 0.934 under noise.
        gumbel: draw masks with Gumbel noise, or take them by threshold.
        tau: temperature of the straight-through gradient.
        keep: mask of a step: the "best" iterate by reward, or the "last".
        weight_decay: AdamW's decoupled decay.
        patience: a sample leaves a step after this many iterations without a higher reward; None for never.
        target_reward: a sample leaves a step once it has reached this reward; None for never. It keeps its masks and drops
            out of the batch; a step ends when all samples have left.
        time_limit_s: stop drafting and optimising after this many seconds and sample on; None for no limit.
        reuse: compute once per step what no mask touches; the masks are the same bit for bit.
        gradient_checkpointing: trade time for memory in the U-Net and the decoder.
        compare_base: also make the seed's own image, without drafts and masks.

    Raises:
        SettingError: a setting is out of range.
    """

    num_inference_steps: int = integer(15, at_least=1, at_most=1000)
    guidance_scale: float = number(7.5, at_least=0)
    negative_prompt: str | None = text(None, optional=True)
    height: int | None = integer(None, at_least=8, optional=True)
    width: int | None = integer(None, at_least=8, optional=True)
    seed: int = integer(0, at_least=0, at_most=2**63 - 1)
    candidates: int = integer(7, at_least=1)
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

    @classmethod
    def preset(cls, name: str, **changes: Any) -> SearchConfig:
        """Return a preset, with changes.

        Args:
            name: "default", which drafts noises and then searches masks; "masks", masks alone from the seed's noise;
                "fast", fewer iterations of that; "paper", the authors' settings.
            changes: settings to replace.

        Raises:
            SettingError: no such preset, or a setting is out of range.
        """
        if name not in PRESETS:
            raise SettingError(f"expected a preset ({', '.join(PRESETS)}), got {name!r}")
        return cls(**(PRESETS[name] | changes))

    def iterations_at(self, index: int, steps: int) -> int:
        """Return the iterations of step `index` of `steps`."""
        if isinstance(self.iterations, int):
            return self.iterations
        count = len(self.iterations)
        first = index * count // steps
        # Of fewer steps than numbers each stands for several, and takes the most of theirs: none is passed over.
        end = max(first + 1, -(-(index + 1) * count // steps)) if steps < count else first + 1
        return max(self.iterations[first:end])


PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "masks": {"candidates": 1, "iterations": (0, 4, 0)},
    "fast": {"candidates": 1, "iterations": (0, 0, 3, 0, 0)},
    # AdamW at 1e-2; one iteration in the first seven of fifteen steps, ten after; drawn masks, last iterate, reset.
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
