"""The seam of the trainer: a method decides which parameters are trained. Loop, data, noise and loss are shared."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from ..errors import SettingError


class Method(ABC):
    """Which parameters are trained, how they are installed on a pipeline, and how they are saved.

    Subclasses set `name` and `learning_rate`, the peak rate that is used if the user sets none.
    """

    name: ClassVar[str]
    learning_rate: ClassVar[float]

    @abstractmethod
    def install(self, pipe: Any, seed: int) -> nn.Module:
        """Install the method on a frozen pipeline.

        Args:
            pipe: a Stable Diffusion pipeline whose parameters require no gradients.
            seed: seed of everything that starts at random.

        Returns:
            A module; those of its parameters that require gradients are trained.

        Raises:
            DataError: the method cannot train in the pipeline's precision.
        """

    @abstractmethod
    def remove(self, pipe: Any) -> None:
        """Remove the method. Full fine-tuning leaves the trained weights in the pipeline.

        Args:
            pipe: the pipeline that it was installed on.
        """

    def base_model(self, pipe: Any) -> contextlib.AbstractContextManager[None]:
        """Return a context in which the network is the base model, before and after the method is installed.

        Args:
            pipe: the pipeline.

        Raises:
            SettingError: the method trains the base model's own weights.
        """
        raise SettingError(
            f"expected a method beside the base model's weights (mask, lora, mask+lora) for objective 'guidance', got "
            f"{self.name!r}"
        )

    @abstractmethod
    def start_batch(self, seeds: Sequence[int]) -> None:
        """Prepare a training batch.

        Args:
            seeds: one seed per sample.
        """

    @abstractmethod
    def set_eval(self) -> None:
        """Switch to the behaviour after training: no dropout, no noise."""

    @abstractmethod
    def save(self, pipe: Any, folder: Path, card: Mapping[str, Any]) -> Path:
        """Save the trained parameters in a format that loads elsewhere.

        Args:
            pipe: the pipeline that it is installed on.
            folder: the run's folder.
            card: what the model card of a masker says about the run; empty for other methods.

        Returns:
            The folder that was written.

        Raises:
            DataError: it cannot be written.
        """

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Settings as JSON values; a run is resumed only with the same ones."""

    def expected_density(self) -> Tensor | None:
        """Return the mean P(keep) of the latest call's masks, with its gradient; None without masks."""
        return None

    def set_tau(self, tau: float) -> None:  # noqa: B027 - a method without masks has no temperature
        """Set the temperature of the relaxation.

        Args:
            tau: the temperature, > 0.
        """
