"""The interface of maskers: a masker returns, for one block at one step, the masks of its layers.

A masker returns one `LayerMask` per masked layer of the block, in the cheapest form: free logits, the factors of a
low-rank product, or packed bits. The hooks of `maskunet.attach` hold it until the layer runs, and the form then calls
the operator that computes the layer's output. Trainer, search, analysis and generation differ only in the masker that
they attach.
"""

from __future__ import annotations

import math
import os
from abc import ABCMeta, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from .. import checkpoint
from ..errors import CheckpointError, SettingError, TargetError
from ..moving import outside_inference_mode
from ..network import Network
from .layer_mask import BlockInput, LayerMask


class _MaskerMeta(ABCMeta):
    """Builds every masker, also a user's, outside of inference mode, so that it can be trained."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        with outside_inference_mode():
            return super().__call__(*args, **kwargs)


class Masker(nn.Module, metaclass=_MaskerMeta):
    """Base of all maskers.

    A masker starts in evaluation mode, where masks are deterministic unless `attach` has a seed. In training mode
    (`masker.train()`) every call draws masks with new Gumbel noise for every sample.

    Args:
        network: the blocks and layers that it masks.
        tau: temperature of the straight-through gradient, > 0.

    Raises:
        SettingError: `tau` is not positive and finite.
    """

    #: Constructor arguments after the network, which `save_pretrained` writes.
    settings_names: ClassVar[tuple[str, ...]] = ("tau",)
    #: Numbers of masks M that layers hold, where they are fixed: one for all prompts, one per prompt, or one per image.
    mask_counts: frozenset[int] = frozenset()
    #: "conditional" if only the rows of a guided batch that see the prompt are masked.
    guided_half: str | None = None
    #: Scale of the classifier-free guidance that the masks replace; None if they were not trained to.
    replaced_guidance: float | None = None

    def __init__(self, network: Network, tau: float = 1.0) -> None:
        super().__init__()
        if not 0 < tau < math.inf:
            raise SettingError(f"expected a finite temperature tau > 0, got {tau}")
        self.network = network
        self.tau = tau
        self.training = False

    def __init_subclass__(cls, *, savable: bool = True, **options: Any) -> None:
        super().__init_subclass__(**options)
        if savable:
            checkpoint.register(cls)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or cast the masker, as `to`, `cuda` and `half` do, outside of inference mode."""
        with outside_inference_mode():
            return super()._apply(fn, recurse)

    @abstractmethod
    def block_masks(self, block: str, inputs: BlockInput) -> Mapping[str, LayerMask]:
        """Return the masks of a block's layers.

        Args:
            block: name of the block, such as "up_blocks.1".
            inputs: inputs of the block.

        Returns:
            One `LayerMask` per masked layer of the block, by layer name.
        """

    @property
    def conditions(self) -> tuple[str, ...]:
        """What masks depend on: "timestep", "sample" (features, prompt or row), both, or nothing.

        Masks that depend on nothing can be merged into the weights exactly.
        """
        return ("timestep", "sample")

    def count_masks(self, layer: str) -> int | None:
        """Return the number of masks that a layer holds; None for one mask, or for masks that follow the batch.

        Args:
            layer: name of the layer.
        """
        return next(iter(self.mask_counts)) if len(self.mask_counts) == 1 else None

    def check_prompt_count(self, count: int) -> None:
        """Refuse prompts that cannot be divided among the masks.

        Args:
            count: number of prompts.

        Raises:
            TargetError: it is no multiple of the number of masks.
        """
        for masks in sorted(self.mask_counts):
            if count % masks:
                raise TargetError(
                    f"expected a multiple of {masks} prompts for {masks} masks per layer, got {count}; pass that many "
                    "prompts, or attach one mask for all (select or merge a MaskSchedule)"
                )

    @property
    def settings(self) -> dict[str, Any]:
        """Constructor arguments after the network, as JSON values."""
        return {name: getattr(self, name) for name in self.settings_names}

    @classmethod
    def from_settings(cls, network: Network, settings: Mapping[str, Any]) -> Masker:
        """Build a masker from saved settings.

        Args:
            network: the blocks and layers that it masks.
            settings: what `settings` returned.
        """
        return cls(network, **settings)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors to save; the state dict unless a subclass has a smaller form."""
        return self.state_dict()

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Read saved tensors.

        Args:
            tensors: what `tensors` returned.
        """
        self.load_state_dict(tensors)

    def save_pretrained(self, folder: str | os.PathLike[str], **card: Any) -> Path:
        """Write config.json, masker.safetensors and a model card; see `maskunet.checkpoint.save`.

        Args:
            folder: the folder; made if missing.
            card: `base_model`, `dataset` and `recipe` of the model card.

        Returns:
            The folder.

        Raises:
            CheckpointError: the folder cannot be written, or a tensor holds NaN or Inf.
        """
        return checkpoint.save(self, folder, **card)

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str], model: Any = None, **options: Any) -> Self:
        """Read a masker of this class; `maskunet.load` reads any.

        Args:
            source: its folder, a hub id, or a bundled name.
            model: the pipeline or U-Net to attach it to; a masker for another one is refused.
            options: `revision`, `token` and `device` of `maskunet.load`.

        Raises:
            CheckpointError: files are missing or unreadable, or hold a masker of another class.
            TargetError: it was made for another network; the differing layers are named.
        """
        from . import load  # it imports every masker, which this module cannot

        masker = load(source, model, **options)
        if not isinstance(masker, cls):
            raise CheckpointError(
                f"expected a {cls.__name__} in {os.fspath(source)!r}, got a {type(masker).__name__}; use maskunet.load"
            )
        return masker

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the files of `save_pretrained` to the hub; see `maskunet.checkpoint.push`.

        Args:
            repo_id: "user/name".
            options: options of `maskunet.checkpoint.push`.

        Returns:
            The commit's address.
        """
        return checkpoint.push(self, repo_id, **options)


def module_key(name: str) -> str:
    """Return the dotted name of a layer or block without dots, which names of modules and parameters cannot hold.

    Args:
        name: the dotted name.
    """
    return name.replace(".", "__")
