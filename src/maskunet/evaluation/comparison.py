"""Compare a pipeline without and with its masks: same prompts, same noise, exact verdicts, 95 % intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..attaching import attachment_of, disabled
from ..errors import SettingError
from ..metrics.distances import frechet_distance
from ..metrics.geneval_rules import check
from ..metrics.intervals import Changes, Estimate, over_prompts, sign_test, student
from ..relaxation import derive_seed
from ..sampling.generation import generate
from ..shapes.judge import judge
from ..shapes.scenes import Prompt
from ..shapes.vocabulary import TASKS
from ..zoo import defaults

#: The sides of a comparison with the attached masks.
SIDES = ("base", "masked")


@dataclass(frozen=True)
class Comparison:
    """Verdicts and distances of both sides.

    Args:
        prompts: N prompts with their requirements.
        seeds: images per prompt and side, from the same noise on both sides.
        right: whether each image matches its prompt, (2, seeds, N): base, masked.
        reasons: why an image does not match, by side, seed and prompt; None if it does.
        distances: FID on the bundled features, (2, seeds); (2, 0) if it was not measured.
    """

    prompts: Sequence[Prompt]
    seeds: int
    right: Tensor
    reasons: list[list[list[str | None]]]
    distances: Tensor

    def accuracy(self, side: str, task: str | None = None, *, without: str | None = None) -> Estimate:
        """Return the share of right images of a side, of one task or as the mean over tasks (GenEval's overall).

        The interval is over distinct prompts; all images of a prompt stay together, also where the prompt is repeated.

        Args:
            side: "base" or "masked".
            task: name of the task; the mean over tasks if None.
            without: a task that the mean over tasks leaves out.
        """
        return self._estimate(self.right[SIDES.index(side)].float(), task, without, (0.0, 1.0))

    def gain(self, task: str | None = None, *, without: str | None = None) -> Estimate:
        """Return masked minus base accuracy, paired by prompt and noise.

        Args:
            task: name of the task; the mean over tasks if None.
            without: a task that the mean over tasks leaves out.
        """
        return self._estimate(self.right[1].float() - self.right[0].float(), task, without, (-1.0, 1.0))

    def changes(self, task: str | None = None) -> Changes:
        """Return how many images the masks mend and spoil, with the sign test over pairs of images.

        Args:
            task: name of the task; all images if None.
        """
        columns = [i for i, p in enumerate(self.prompts) if task in (None, p.task)]
        return sign_test(*self.right[:, :, columns].flatten(1))

    def distance(self, side: str) -> Estimate:
        """Return the FID of a side: mean over sets of noises, Student's interval, with the prompts fixed.

        Args:
            side: "base" or "masked".
        """
        return student(self.distances[SIDES.index(side)])

    def distance_gain(self) -> Estimate:
        """Return masked minus base FID, paired by set of noises; lower is better."""
        return student(self.distances[1] - self.distances[0])

    def _estimate(
        self, values: Tensor, task: str | None, without: str | None, limits: tuple[float, float]
    ) -> Estimate:
        columns = [i for i, p in enumerate(self.prompts) if task in (None, p.task) and p.task != without]
        texts, tasks = zip(*((self.prompts[i].prompt, self.prompts[i].task) for i in columns), strict=True)
        return over_prompts(values[:, columns].flatten(), texts * self.seeds, tasks * self.seeds, limits=limits)

    def to_markdown(self) -> str:
        """Return the table of both sides."""
        tasks = [t for t in TASKS if any(p.task == t for p in self.prompts)]
        rows: list[tuple[str, str | None, str | None]] = [(task, task, None) for task in tasks]
        rows.append(("**overall**", None, None))
        if len(tasks) > 1 and defaults.CHANCE_TASK in tasks:
            rows.append((f"**without {defaults.CHANCE_TASK}**", None, defaults.CHANCE_TASK))
        lines = ["| task | base | masked | masked - base |", "|---|---|---|---|"]
        for label, task, without in rows:
            cells = [self.accuracy(side, task, without=without) for side in SIDES] + [self.gain(task, without=without)]
            lines.append(f"| {label} | {' | '.join(map(str, cells))} |")
        lines.append(f"| mended, spoilt | | | {self.changes()} |")
        if self.distances.numel():
            row = f"| FID (bundled features) | {self.distance('base')} | {self.distance('masked')} "
            lines.append(row + f"| {self.distance_gain()} |")
        return "\n".join(lines)


def compare(
    pipe: object,
    prompts: Sequence[Prompt],
    *,
    seeds: int = 1,
    seed: int = 0,
    num_inference_steps: int = defaults.NUM_INFERENCE_STEPS,
    guidance_scale: float | None = None,
    batch_size: int = 64,
    features: Callable[[Tensor], Tensor] | None = None,
    reference: Tensor | None = None,
    progress: bool = True,
    on_images: Callable[[str, int, Tensor], None] | None = None,
) -> Comparison:
    """Generate from prompts of the shapes world without and with the attached masks, and judge both.

    Args:
        pipe: a pipeline with a masker attached.
        prompts: prompts with their requirements.
        seeds: images per prompt and side, >= 1.
        seed: the noise of an image depends on this, on the number of its seed and on that of its prompt.
        num_inference_steps: denoising steps.
        guidance_scale: strength of classifier-free guidance; the model's default if None.
        batch_size: prompts per call.
        features: maps images (N, 3, H, W) in [0, 1] to features (N, D), for FID; FID is not measured if None.
        reference: real images (M, 3, H, W) in [0, 1], for FID.
        progress: show progress bars.
        on_images: called with the side's name, the number of the seed and the images.

    Raises:
        SettingError: no masker is attached, or fewer than one seed.
        DataError: there are no prompts.
    """
    if attachment_of(pipe) is None or seeds < 1:
        raise SettingError(
            f"expected a pipeline with a masker attached and at least one seed, got {seeds} seeds and "
            f"{'no masker; call maskunet.attach first' if attachment_of(pipe) is None else 'a masker'}"
        )
    right = torch.zeros(2, seeds, len(prompts), dtype=torch.bool)
    reasons: list[list[list[str | None]]] = [[], []]
    distances = torch.zeros(2, seeds if features is not None and reference is not None else 0)
    real = features(reference) if features is not None and reference is not None else None
    for run in range(seeds):
        noise = [derive_seed(seed, run, i) % 2**31 for i in range(len(prompts))]
        for side, name in enumerate(SIDES):
            options = {
                "seeds": noise,
                "num_inference_steps": num_inference_steps,
                "guidance_scale": guidance_scale,
                "batch_size": batch_size,
                "progress": progress,
            }
            texts = [p.prompt for p in prompts]
            if name == "base":
                with disabled(pipe):
                    images = generate(pipe, texts, **options).tensor  # type: ignore[arg-type]
            else:
                images = generate(pipe, texts, **options).tensor  # type: ignore[arg-type]
            verdicts = [check(d, p.metadata()) for d, p in zip(judge(images), prompts, strict=True)]
            reasons[side].append(verdicts)
            right[side, run] = torch.tensor([v is None for v in verdicts])
            if features is not None and real is not None:
                distances[side, run] = frechet_distance(features(images), real)
            if on_images is not None:
                on_images(name, run, images)
    return Comparison(prompts, seeds, right, reasons, distances)
