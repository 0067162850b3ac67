"""Settings of a search, and the presets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..errors import DataError

if TYPE_CHECKING:  # settings are read before torch is imported
    from ..targets import Targets

_LEAST = {
    "candidates": 1,
    "num_inference_steps": 1,
    "patience": 1,
    "preview_size": 8,
    "weight_decay": 0,
    "initial_spread": 0,
    "draws": 1,
    "rollout": 0,
}
_CHOICES = {
    "keep": ("best", "last"),
    "halves": ("both", "conditional"),
    "structure": ("free", "row", "column", "rows-and-columns", "layer"),
    "rollout_gradient": ("full", "straight"),
}


@dataclass(frozen=True)
class SearchConfig:
    """Settings of `search`. A fresh one is the preset "masks", without drafts; a search without settings takes "default".

    They were chosen on validation prompts of the bundled model at 15 steps (docs/results/search_variants.json): the middle
    third of the steps raises the reward most for its compute, and a rate of 1 ruins pictures where 0.3 does not. For the
    same compute a drafted noise and fewer iterations make far more pictures right than masks alone
    (docs/results/search_variants_shapes-matching.json).

    Args:
        num_inference_steps: denoising steps.
        guidance_scale: strength of classifier-free guidance.
        negative_prompt: what to steer away from.
        height, width: size in pixels; the model's own if None.
        seed: picture i starts from the noise of seed + i, or has it for its first candidate.
        candidates: noises a prompt that are drafted before the search, that of its seed first; the search starts from the
            one whose draft has the highest reward. 1 takes that of the seed and makes no draft.
        targets: which layers are masked.
        halves: which half of a guided batch is masked, "both" (paper) or the "conditional" one: then the unconditional
            half is computed once a step, and an iteration costs half.
        preview_size: pictures for the reward are decoded from latents that are averaged down to about this many pixels
            a side, never below; None decodes them whole.
        iterations: optimiser iterations a step, one number for all steps, or a sequence that is spread evenly over them:
            (0, 4, 0) spends 4 on each step of the middle third; where steps are fewer than numbers, a step takes the
            most of its own.
        learning_rate: Adam's rate on the mask logits.
        initial_logit: every logit at the start of a step; 1 keeps a weight with probability 0.934 under noise.
        initial_spread: standard deviation of the logits about it, drawn anew at each step.
        structure: what has a logit of its own, each weight ("free"), each "row" or "column" of a weight matrix, both as a
            sum ("rows-and-columns"), or each "layer". Noise is each weight's own in all of them.
        ascend: improve the logits by the gradient; without, each iteration draws masks anew from the start, no gradient
            is taken, and what is left is a choice among random masks.
        draws: masks drawn an iteration; their gradients are averaged, and the best of them by reward stands for it.
        rollout: coarse steps that sample on from an iterate, without masks, before the reward sees it; 0 shows the reward
            the predicted clean picture.
        rollout_gradient: through the "full" roll-out, or "straight" past it, as if it were the identity.
        gumbel: draw masks with Gumbel noise, or by threshold.
        tau: temperature of the straight-through gradient.
        keep: mask of a step: the "best" iterate by reward, or the "last".
        carry_over: start a step from the logits of the one before, instead of anew; steps without iterations after it take
            their masks from them as well.
        weight_decay: AdamW's decoupled decay.
        max_grad_norm: bound of each sample's gradient norm; None for none.
        patience: a sample is done with a step after so many iterations in which it did not get better; None for never.
        target_reward: a sample is done with a step once it has reached this reward; None for never. What is done keeps its
            masks, as if it were alone, and is left out of the batch (with a masker under the search, only of the
            optimiser); a step ends when all samples are done.
        time_limit_s: stop drafting and optimising after so many seconds and sample on; None for no limit. With
            `carry_over` masks go on, unjudged.
        reuse: compute once a step what no mask touches; the masks are the same bit for bit.
        gradient_checkpointing: trade time for memory in the U-Net and the decoder.
        compare_base: also make the picture of the seed, without drafts and masks.
    """

    num_inference_steps: int = 15
    guidance_scale: float = 7.5
    negative_prompt: str | None = None
    height: int | None = None
    width: int | None = None
    seed: int = 0
    candidates: int = 1
    targets: Targets = "decoder-attention"
    halves: str = "conditional"
    preview_size: int | None = 256
    iterations: int | Sequence[int] = (0, 4, 0)
    learning_rate: float = 0.3
    initial_logit: float = 2.0
    initial_spread: float = 0.0
    structure: str = "free"
    ascend: bool = True
    draws: int = 1
    rollout: int = 0
    rollout_gradient: str = "full"
    gumbel: bool = True
    tau: float = 1.0
    keep: str = "best"
    carry_over: bool = False
    weight_decay: float = 0.0
    max_grad_norm: float | None = None
    patience: int | None = None
    target_reward: float | None = None
    time_limit_s: float | None = None
    reuse: bool = True
    gradient_checkpointing: bool = False
    compare_base: bool = True

    @classmethod
    def preset(cls, name: str, **changes: Any) -> SearchConfig:
        """Return a preset, with changes.

        Args:
            name: "paper", the authors' settings; "default", what measures best so far, a noise chosen by drafts and masks
                after; "masks", masks alone from the noise that is given; "fast", fewer iterations of that.
            changes: settings to replace.

        Raises:
            DataError: no such preset.
        """
        if name not in PRESETS:
            raise DataError(f"expected a preset ({', '.join(PRESETS)}), got {name!r}")
        return replace(cls(), **(PRESETS[name] | changes))

    def iterations_at(self, index: int, steps: int) -> int:
        """Return the iterations of step `index` of `steps`."""
        if isinstance(self.iterations, int):
            return self.iterations
        count = len(self.iterations)
        first = index * count // steps
        # Of fewer steps than numbers each stands for several, and takes the most of theirs: none is passed over.
        end = max(first + 1, -(-(index + 1) * count // steps)) if steps < count else first + 1
        return max(self.iterations[first:end])

    def checked(self) -> SearchConfig:
        """Return the settings if they make sense.

        Raises:
            DataError: one is out of range.
        """
        counts = [self.iterations] if isinstance(self.iterations, int) else list(self.iterations)
        if not counts or min(counts) < 0:
            raise DataError(f"expected iterations of at least 0, got {self.iterations!r}")
        for name in ("learning_rate", "tau", "max_grad_norm", "time_limit_s"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise DataError(f"expected {name} above 0, got {value}")
        for name, least in _LEAST.items():
            if (value := getattr(self, name)) is not None and value < least:
                raise DataError(f"expected {name} of at least {least}, got {value}")
        for name, choices in _CHOICES.items():
            if (value := getattr(self, name)) not in choices:
                known = " or ".join(map(repr, choices))
                raise DataError(f"expected {name} to be {known}, got {value!r}")
        if not self.ascend and not self.gumbel:
            raise DataError(
                "expected gumbel=True without ascend: masks by threshold from the same logits are all the same"
            )
        return self


PRESETS: dict[str, dict[str, Any]] = {
    # AdamW at 1e-2, one iteration in the first seven of fifteen steps and ten after, masks drawn, the last iterate, reset.
    "paper": {
        "iterations": (1,) * 7 + (10,) * 8,
        "learning_rate": 1e-2,
        "initial_logit": 1.0,
        "gumbel": True,
        "keep": "last",
        "weight_decay": 1e-2,
        "halves": "both",
        "preview_size": None,
        "reuse": False,
    },
    "default": {"candidates": 7, "iterations": (0, 0, 2, 0, 0)},
    "masks": {},
    "fast": {"iterations": (0, 0, 3, 0, 0)},
}
