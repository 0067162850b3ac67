"""Scores of a benchmark: a figure for each picture of each side, summed up by task, compared pair by pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import DataError
from ..metrics.intervals import Estimate, bootstrap, wilson


class Score(NamedTuple):
    """The score of one picture: its prompt's number, the task (or category) of the prompt, and a figure in [0, 1]."""

    prompt: int
    task: str
    value: float


@dataclass(frozen=True)
class Scores:
    """Scores of all sides.

    Args:
        tasks: the task of each of N prompts.
        values: mean score of each prompt's pictures, by side, (N,).
        pictures: how many pictures each prompt has, (N,).
        overall: name of the mean over tasks; None where the benchmark has no such figure.
        digits: digits after the point in tables.
    """

    tasks: Sequence[str]
    values: Mapping[str, Tensor]
    pictures: Tensor
    overall: str | None = "overall"
    digits: int = 3

    @classmethod
    def of(cls, sides: Mapping[str, Sequence[Score]], **options: Any) -> Scores:
        """Gather the scores of single pictures.

        Args:
            sides: by side.
            options: `overall`, `digits`.

        Raises:
            DataError: no pictures, or sides with other prompts or numbers of pictures.
        """
        if not sides or not all(sides.values()):
            raise DataError(f"expected scores of at least one picture on every side, got {list(sides)}")
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
        pictures = next(iter(counts.values()))
        if not all(torch.equal(c, pictures) for c in counts.values()):
            raise DataError("expected as many pictures of each prompt on every side; generate the missing ones first")
        return cls([task[i] for i in order], values, pictures, **options)

    @property
    def names(self) -> list[str]:
        """Tasks in the order of the prompts."""
        return list(dict.fromkeys(self.tasks))

    def estimate(self, side: str, task: str | None = None) -> Estimate:
        """Return the mean score of a side, of one task or as the mean over tasks.

        The interval is a bootstrap over prompts, whose pictures stay together. Where every prompt of the task has the
        same score of 0 or 1 that has no width, and Wilson's interval for as many trials as prompts stands in.
        """
        groups = self._groups(task)
        if task is not None:
            low, high = self.values[side][groups[0]].aminmax()
            if low == high and float(low) in (0.0, 1.0):
                return wilson(float(low), len(groups[0]))
        return bootstrap(self.values[side], groups, self.pictures)

    def gain(self, side: str, against: str, task: str | None = None) -> Estimate:
        """Return the score of one side minus that of another, paired by prompt; the seeds are the same."""
        return bootstrap(self.values[side] - self.values[against], self._groups(task), self.pictures)

    def _groups(self, task: str | None) -> list[Tensor]:
        return [
            torch.tensor([i for i, t in enumerate(self.tasks) if t == name])
            for name in ([task] if task else self.names)
        ]

    def _rows(self) -> list[tuple[str, str | None]]:
        return [(name, name) for name in self.names] + ([(f"**{self.overall}**", None)] if self.overall else [])

    def to_markdown(self) -> str:
        """Return the table: a row a task, a column a side, and each later side minus the first; 95 % intervals."""
        sides, spec = list(self.values), f".{self.digits}f"
        pairs = [(side, sides[0]) for side in sides[1:]]
        head = ["task", "prompts", "pictures", *sides, *(f"{a} - {b}" for a, b in pairs)]
        lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
        for label, task in self._rows():
            index = torch.cat(self._groups(task))
            cells = [label, str(len(index)), str(int(self.pictures[index].sum()))]
            cells += [format(self.estimate(side, task), spec) for side in sides]
            cells += [format(self.gain(a, b, task), spec) for a, b in pairs]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return all figures: by task and overall, for each side and each later side minus the first."""

        def cell(found: Estimate) -> dict[str, float]:
            return {"value": found.value, "low": found.low, "high": found.high}

        sides = list(self.values)
        found = {}
        for label, task in self._rows():
            index = torch.cat(self._groups(task))
            row: dict[str, Any] = {"prompts": len(index), "pictures": int(self.pictures[index].sum())}
            row |= {side: cell(self.estimate(side, task)) for side in sides}
            row |= {f"{side} - {sides[0]}": cell(self.gain(side, sides[0], task)) for side in sides[1:]}
            found[label.strip("*")] = row
        return found
