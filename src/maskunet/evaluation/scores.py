"""Scores of a benchmark: one value per image and side, averaged by task, compared in pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import DataError
from ..metrics.intervals import Estimate, bootstrap, wilson


class Score(NamedTuple):
    """The score of one image: its prompt's number, the prompt's task (or category), and a value in [0, 1]."""

    prompt: int
    task: str
    value: float


@dataclass(frozen=True)
class Scores:
    """Scores of all sides.

    Args:
        tasks: the task of each of N prompts.
        values: mean score of each prompt's images, by side, (N,).
        images: number of images of each prompt, (N,).
        overall: name of the mean over tasks; None if the benchmark has no such figure.
        digits: digits after the point in tables.
    """

    tasks: Sequence[str]
    values: Mapping[str, Tensor]
    images: Tensor
    overall: str | None = "overall"
    digits: int = 3

    @classmethod
    def gather(cls, sides: Mapping[str, Sequence[Score]], **options: Any) -> Scores:
        """Gather the scores of single images.

        Args:
            sides: scores by side.
            options: `overall`, `digits`.

        Raises:
            DataError: there are no images, or sides differ in prompts or numbers of images.
        """
        if not sides or not all(sides.values()):
            raise DataError(f"expected scores of at least one image on every side, got {list(sides)}")
        first = next(iter(sides.values()))
        task = {s.prompt: s.task for s in first}
        order = sorted(task)
        values, counts = {}, {}
        for side, scores in sides.items():
            sums, n = dict.fromkeys(order, 0.0), dict.fromkeys(order, 0)
            for score in scores:
                if task.get(score.prompt) != score.task:
                    raise DataError(
                        f"expected the same prompts on every side, prompt {score.prompt} of {side} differs"
                    )
                sums[score.prompt] += score.value
                n[score.prompt] += 1
            counts[side] = torch.tensor([n[i] for i in order])
            values[side] = torch.tensor([sums[i] for i in order]) / counts[side]
        images = next(iter(counts.values()))
        if not all(torch.equal(c, images) for c in counts.values()):
            raise DataError(
                "expected the same number of images per prompt on every side; generate the missing ones first"
            )
        return cls([task[i] for i in order], values, images, **options)

    @property
    def task_names(self) -> list[str]:
        """Tasks in the order of the prompts."""
        return list(dict.fromkeys(self.tasks))

    def estimate(self, side: str, task: str | None = None) -> Estimate:
        """Return the mean score of a side, of one task or as the mean over tasks.

        The interval is a bootstrap over prompts; the images of a prompt stay together. If every prompt of the task has the
        same score of 0 or 1, a bootstrap interval has no width, and Wilson's interval with one trial per prompt is returned.

        Args:
            side: name of the side.
            task: name of the task; the mean over tasks if None.
        """
        groups = self._groups(task)
        if task is not None:
            low, high = self.values[side][groups[0]].aminmax()
            if low == high and float(low) in (0.0, 1.0):
                return wilson(float(low), len(groups[0]))
        return bootstrap(self.values[side], groups, self.images)

    def gain(self, side: str, against: str, task: str | None = None) -> Estimate:
        """Return the score of one side minus that of another, paired by prompt; the seeds are the same.

        Args:
            side: name of the side.
            against: name of the other side.
            task: name of the task; the mean over tasks if None.
        """
        return bootstrap(self.values[side] - self.values[against], self._groups(task), self.images)

    def _groups(self, task: str | None) -> list[Tensor]:
        names = [task] if task else self.task_names
        return [torch.tensor([i for i, t in enumerate(self.tasks) if t == name]) for name in names]

    def _rows(self) -> list[tuple[str, str | None]]:
        rows: list[tuple[str, str | None]] = [(name, name) for name in self.task_names]
        return rows + ([(f"**{self.overall}**", None)] if self.overall else [])

    def to_markdown(self) -> str:
        """Return the table: one row per task, one column per side, each later side minus the first; 95 % intervals."""
        sides, spec = list(self.values), f".{self.digits}f"
        pairs = [(side, sides[0]) for side in sides[1:]]
        head = ["task", "prompts", "images", *sides, *(f"{a} - {b}" for a, b in pairs)]
        lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
        for label, task in self._rows():
            index = torch.cat(self._groups(task))
            cells = [label, str(len(index)), str(int(self.images[index].sum()))]
            cells += [format(self.estimate(side, task), spec) for side in sides]
            cells += [format(self.gain(a, b, task), spec) for a, b in pairs]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return all figures as JSON values: by task and overall, for each side and each later side minus the first."""

        def bounds(estimate: Estimate) -> dict[str, float]:
            return {"value": estimate.value, "low": estimate.low, "high": estimate.high}

        sides = list(self.values)
        table = {}
        for label, task in self._rows():
            index = torch.cat(self._groups(task))
            row: dict[str, Any] = {"prompts": len(index), "images": int(self.images[index].sum())}
            row |= {side: bounds(self.estimate(side, task)) for side in sides}
            row |= {f"{side} - {sides[0]}": bounds(self.gain(side, sides[0], task)) for side in sides[1:]}
            table[label.strip("*")] = row
        return table
