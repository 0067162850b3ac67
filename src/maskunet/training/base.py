"""The seam of the trainer: a method says what trains. The loop, the data, the noise and the loss are the same for all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn


class Method(ABC):
    """What trains, how it goes onto a pipeline, and how it is saved.

    `learning_rate` is the method's own usual rate, taken where the user names none.
    """

    name: ClassVar[str]
    learning_rate: ClassVar[float]

    @abstractmethod
    def install(self, pipe: Any, seed: int) -> nn.Module:
        """Put the method onto a pipeline whose parameters are frozen, and return the module that trains.

        Only its parameters that require gradients train.

        Args:
            pipe: a Stable Diffusion pipeline.
            seed: seed of whatever starts at random.

        Raises:
            DataError: the pipeline's precision does not allow for this method.
        """

    @abstractmethod
    def remove(self, pipe: Any) -> None:
        """Take the method off again. Full fine-tuning leaves the trained weights in the pipeline."""

    @abstractmethod
    def begin(self, seeds: Sequence[int]) -> None:
        """Prepare a training step; `seeds` are one for each sample."""

    @abstractmethod
    def evaluate(self) -> None:
        """Switch to what is used after training: no dropout, no noise."""

    @abstractmethod
    def save(self, pipe: Any, folder: Path, card: Mapping[str, Any]) -> Path:
        """Write what was trained, in the format that loads elsewhere, and return its folder.

        Args:
            pipe: the pipeline that it was trained on.
            folder: the run's folder.
            card: what the model card of a masker says of the run; empty for other methods.
        """

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Settings as JSON values; a run is resumed only with the same ones."""

    def regulariser(self) -> Tensor | None:
        """Return the mean P(keep) of the step's masks, with its gradient; None where there are no masks."""
        return None

    def anneal(self, tau: float) -> None:  # noqa: B027 - a method without masks has no temperature
        """Set the temperature of the relaxation."""
