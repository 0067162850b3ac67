"""Scores of a benchmark: one value per image and side, averaged by task, compared in pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import DataError
from ..metrics.intervals import Changes, Estimate, over_prompts, sign_test


class Score(NamedTuple):
    """The score of one image: its prompt's number, the prompt's task (or category), and a value in [0, 1].

    Prompts of one task with the same text count as repeats of one prompt; without a text, prompts are distinct.
    """

    prompt: int
    task: str
    value: float
    text: str | None = None


@dataclass(frozen=True)
class Scores:
    """Scores of all sides.

    Args:
        tasks: the task of each of N prompts.
        values: mean score of each prompt's images, by side, (N,).
        images: number of images of each prompt, (N,).
        each: scores of single images by side, in the order of the prompts, (M,).
        texts: what tells the prompts of a task apart, (N,); equal ones are repeats of one prompt.
        overall: name of the mean over tasks; None if the benchmark has no such figure.
        digits: digits after the point in tables.
        without: a task that a second mean over tasks leaves out; None for no such mean.
    """

    tasks: Sequence[str]
    values: Mapping[str, Tensor]
    images: Tensor
    each: Mapping[str, Tensor]
    texts: Sequence[str | int]
    overall: str | None = "overall"
    digits: int = 3
    without: str | None = None

    @classmethod
    def gather(cls, sides: Mapping[str, Sequence[Score]], **options: Any) -> Scores:
        """Gather the scores of single images.

        Args:
            sides: scores by side.
            options: `overall`, `digits`, `without`.

        Raises:
            DataError: there are no images, or sides differ in prompts or numbers of images.
        """
        if not sides or not all(sides.values()):
            raise DataError(f"expected scores of at least one image on every side, got {list(sides)}")
        first = next(iter(sides.values()))
        task = {s.prompt: s.task for s in first}
        texts = {s.prompt: s.prompt if s.text is None else s.text for s in first}
        order = sorted(task)
        values, counts, each = {}, {}, {}
        for side, scores in sides.items():
            of_prompt: dict[int, list[float]] = {i: [] for i in order}
            for score in scores:
                if task.get(score.prompt) != score.task:
                    raise DataError(
                        f"expected the same prompts on every side, prompt {score.prompt} of {side} differs"
                    )
                of_prompt[score.prompt].append(score.value)
            counts[side] = torch.tensor([len(of_prompt[i]) for i in order])
            each[side] = torch.tensor([value for i in order for value in of_prompt[i]])
            values[side] = torch.tensor([sum(of_prompt[i]) for i in order]) / counts[side]
        images = next(iter(counts.values()))
        if not all(torch.equal(c, images) for c in counts.values()):
            raise DataError(
                "expected the same number of images per prompt on every side; generate the missing ones first"
            )
        return cls([task[i] for i in order], values, images, each, [texts[i] for i in order], **options)

    @property
    def task_names(self) -> list[str]:
        """Tasks in the order of the prompts."""
        return list(dict.fromkeys(self.tasks))

    def estimate(self, side: str, task: str | None = None, *, without: str | None = None) -> Estimate:
        """Return the mean score of a side, of one task or as the mean over tasks.

        The interval is over distinct prompts; the images of a prompt stay together.

        Args:
            side: name of the side.
            task: name of the task; the mean over tasks if None.
            without: a task that the mean over tasks leaves out.
        """
        return self._estimate(self.values[side], task, without, (0.0, 1.0))

    def gain(self, side: str, against: str, task: str | None = None, *, without: str | None = None) -> Estimate:
        """Return the score of one side minus that of another, paired by prompt and noise.

        Args:
            side: name of the side.
            against: name of the other side.
            task: name of the task; the mean over tasks if None.
            without: a task that the mean over tasks leaves out.
        """
        return self._estimate(self.values[side] - self.values[against], task, without, (-1.0, 1.0))

    def changes(self, side: str, against: str) -> Changes:
        """Return how many images score more and less on one side than on another, with the sign test.

        Args:
            side: name of the side.
            against: name of the other side.
        """
        return sign_test(self.each[against], self.each[side])

    def _estimate(
        self, values: Tensor, task: str | None, without: str | None, limits: tuple[float, float]
    ) -> Estimate:
        index = self._index(task, without)
        texts, tasks = [self.texts[i] for i in index], [self.tasks[i] for i in index]
        return over_prompts(values[index], texts, tasks, weights=self.images[index], limits=limits)

    def _index(self, task: str | None, without: str | None = None) -> list[int]:
        """Return the numbers of the prompts of one task, or of all tasks but one."""
        return [i for i, t in enumerate(self.tasks) if task in (None, t) and t != without]

    def _rows(self) -> list[tuple[str, str | None, str | None]]:
        """Return each row's label, its task, and the task that it leaves out."""
        names = self.task_names
        rows: list[tuple[str, str | None, str | None]] = [(name, name, None) for name in names]
        if self.overall:
            rows.append((f"**{self.overall}**", None, None))
            if self.without in names and len(names) > 1:
                rows.append((f"**{self.overall} without {self.without}**", None, self.without))
        return rows

    def to_markdown(self) -> str:
        """Return the table: one row per task, one column per side, each later side minus the first; 95 % intervals."""
        sides, spec = list(self.values), f".{self.digits}f"
        pairs = [(side, sides[0]) for side in sides[1:]]
        head = ["task", "prompts", "images", *sides, *(f"{a} - {b}" for a, b in pairs)]
        lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
        for label, task, without in self._rows():
            cells = [label, *map(str, self._counts(task, without))]
            cells += [format(self.estimate(side, task, without=without), spec) for side in sides]
            cells += [format(self.gain(a, b, task, without=without), spec) for a, b in pairs]
            lines.append(f"| {' | '.join(cells)} |")
        if pairs:
            cells = ["images better, worse", *[""] * (2 + len(sides)), *(str(self.changes(a, b)) for a, b in pairs)]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)

    def _counts(self, task: str | None, without: str | None) -> tuple[int, int]:
        """Return the numbers of distinct prompts and of images."""
        index = self._index(task, without)
        return len({(self.tasks[i], self.texts[i]) for i in index}), int(self.images[index].sum())

    def to_dict(self) -> dict[str, Any]:
        """Return all figures as JSON values: by task and overall, for each side and each later side minus the first.

        The overall difference also has the numbers of images that are better (`mended`) and worse (`spoilt`), and the
        p-value of the sign test.
        """
        first, *others = self.values
        table = {}
        for label, task, without in self._rows():
            prompts, images = self._counts(task, without)
            row: dict[str, Any] = {"prompts": prompts, "images": images}
            row |= {side: dict(vars(self.estimate(side, task, without=without))) for side in self.values}
            for side in others:
                row[f"{side} - {first}"] = dict(vars(self.gain(side, first, task, without=without)))
                if task is None and without is None:
                    row[f"{side} - {first}"] |= vars(self.changes(side, first))
            table[label.strip("*")] = row
        return table
