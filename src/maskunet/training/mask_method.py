"""Train a masker on a frozen network."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..attaching import Attachment, attach, detach, disabled
from ..errors import SettingError
from ..maskers import ComposedMasker, Masker
from .base import Method


class MaskMethod(Method):
    """Train a masker; the network stays frozen.

    Args:
        masker: the masker, made for the pipeline's U-Net.
        gumbel: draw masks with Gumbel noise, as the paper does, or take them by the deterministic threshold.
        collect_density: collect the mean P(keep) of each batch, for a target density.

    Raises:
        SettingError: the masker is composed of several.
    """

    name: ClassVar[str] = "mask"
    learning_rate: ClassVar[float] = 1e-3

    def __init__(self, masker: Masker, *, gumbel: bool = True, collect_density: bool = False) -> None:
        if isinstance(masker, ComposedMasker):
            raise SettingError(
                f"expected one masker to train, got a composition of {', '.join(masker.names)}; train them one by one"
            )
        self.masker, self.gumbel, self.collect_density = masker, gumbel, collect_density
        self._attachment: Attachment | None = None

    def install(self, pipe: Any, seed: int) -> nn.Module:
        """Attach the masker, in float32.

        Args:
            pipe: the pipeline.
            seed: not used; the masker is built already.

        Raises:
            TargetError: the masker was made for another U-Net.
        """
        self.masker.to(pipe.unet.device, torch.float32)
        self._attachment = attach(pipe, self.masker)
        return self.masker

    def remove(self, pipe: Any) -> None:
        """Detach the masker and leave it in evaluation mode.

        Args:
            pipe: the pipeline.
        """
        detach(pipe)
        self.masker.eval()

    def base_model(self, pipe: Any) -> contextlib.AbstractContextManager[None]:
        """Return a context without masks.

        Args:
            pipe: the pipeline.
        """
        return disabled(pipe)

    @property
    def attachment(self) -> Attachment:
        """The masker's attachment while it is installed."""
        assert self._attachment is not None
        return self._attachment

    def start_batch(self, seeds: Sequence[int]) -> None:
        """Draw new masks, each sample's from its own seed.

        Args:
            seeds: one seed per sample.
        """
        self.masker.train(self.gumbel)
        self.attachment.reseed(tuple(seeds) if self.gumbel else None)
        self.attachment.keep_probabilities = {} if self.collect_density else None

    def set_eval(self) -> None:
        """Take masks by threshold."""
        self.masker.eval()
        self.attachment.reseed(None)  # with a seed, masks are drawn with noise at inference too
        self.attachment.keep_probabilities = None

    def save(self, pipe: Any, folder: Path, card: Mapping[str, Any]) -> Path:
        """Write `masker/`.

        Args:
            pipe: the pipeline.
            folder: the run's folder.
            card: base model, data set and recipe, for the model card.
        """
        return Path(self.masker.save_pretrained(folder / "masker", **card))

    @property
    def settings(self) -> dict[str, Any]:
        """The masker's class, settings and layers."""
        description = [type(self.masker).__name__, self.masker.settings, self.masker.network.to_json()]
        return {"masker": description, "gumbel": self.gumbel, "density": self.collect_density}

    def expected_density(self) -> Tensor | None:
        """Return the mean P(keep) over all masked weights of the latest call, with its gradient."""
        probabilities = self.attachment.keep_probabilities
        if not probabilities:
            return None
        weights = {layer.name: layer.weights for layer in self.masker.network.layers}
        total = torch.stack([p * weights[name] for name, p in probabilities.items()]).sum()
        return total / sum(weights[name] for name in probabilities)

    def set_tau(self, tau: float) -> None:
        """Set the masker's temperature.

        Args:
            tau: the temperature, > 0.
        """
        self.masker.tau = tau
