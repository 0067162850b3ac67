"""The methods that the trainer knows: masks, LoRA, full fine-tuning, and masks with LoRA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..attaching.attachment import Attachment, attach, detach
from ..errors import DataError
from ..maskers import LowRankMaskerConfig, Masker, TrainableConfig, build_masker
from ..targets import Targets, describe
from .base import Method

_ADAPTER = "maskunet_training"


def _put(part: Path, path: Path) -> Path:
    """Move what was written under a temporary name to its place."""
    path.mkdir(parents=True, exist_ok=True)
    for file in part.iterdir():
        file.replace(path / file.name)
    part.rmdir()
    return path


class TrainMasks(Method):
    """Train a masker; the network stays frozen.

    Args:
        masker: the masker, made for the pipeline's U-Net.
        gumbel: draw masks with Gumbel noise, as the paper does, or by the deterministic threshold.
        density: collect the mean P(keep) of each step, for a target density.
    """

    name: ClassVar[str] = "mask"
    learning_rate: ClassVar[float] = 1e-3

    def __init__(self, masker: Masker, *, gumbel: bool = True, density: bool = False) -> None:
        self.masker, self.gumbel, self.density = masker, gumbel, density
        self._attachment: Attachment | None = None

    def install(self, pipe: Any, seed: int) -> nn.Module:
        """Attach the masker."""
        self.masker.to(pipe.unet.device, torch.float32)
        self._attachment = attach(pipe, self.masker)
        return self.masker

    def remove(self, pipe: Any) -> None:
        """Detach the masker and leave it in evaluation mode."""
        detach(pipe)
        self.masker.eval()

    @property
    def attachment(self) -> Attachment:
        """The masker's attachment while it is installed."""
        assert self._attachment is not None
        return self._attachment

    def begin(self, seeds: Sequence[int]) -> None:
        """Draw masks anew, for each sample by its own seed."""
        self.masker.train(self.gumbel)
        self.attachment.reseed(tuple(seeds) if self.gumbel else None)
        self.attachment.keep_probabilities = {} if self.density else None

    def evaluate(self) -> None:
        """Masks by threshold."""
        self.masker.eval()
        self.attachment.reseed(None)  # with a seed even masks at inference would be drawn with noise
        self.attachment.keep_probabilities = None

    def save(self, pipe: Any, folder: Path, card: Mapping[str, Any]) -> Path:
        """Write `masker/`."""
        return Path(self.masker.save_pretrained(folder / "masker", **card))

    @property
    def settings(self) -> dict[str, Any]:
        """The masker's class, settings and layers."""
        made_of = [type(self.masker).__name__, self.masker.settings, self.masker.network.to_json()]
        return {"masker": made_of, "gumbel": self.gumbel, "density": self.density}

    def regulariser(self) -> Tensor | None:
        """Mean P(keep) over all masked weights."""
        kept = self.attachment.keep_probabilities
        if not kept:
            return None
        weights = {layer.name: layer.weights for layer in self.masker.network.layers}
        return torch.stack([p * weights[n] for n, p in kept.items()]).sum() / sum(weights[n] for n in kept)

    def anneal(self, tau: float) -> None:
        """Set the masker's temperature."""
        self.masker.tau = tau


class TrainLora(Method):
    """Train a LoRA beside the target layers, through PEFT.

    Args:
        targets: which layers, as for masks.
        rank: rank of the update; its scale is 1 (alpha = rank).
    """

    name: ClassVar[str] = "lora"
    learning_rate: ClassVar[float] = 1e-4

    def __init__(self, targets: Targets = "decoder-attention", *, rank: int = 16) -> None:
        self.targets, self.rank = targets, rank

    def install(self, pipe: Any, seed: int) -> nn.Module:
        """Add the adapter to the U-Net; its weights are float32 whatever the U-Net's are."""
        try:
            from peft import LoraConfig
        except ImportError as error:
            raise DataError("expected peft for LoRA, it is not installed; pip install 'maskunet[train]'") from error
        from diffusers.training_utils import cast_training_params

        names = [layer.name for layer in describe(pipe.unet, self.targets).layers]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            config = LoraConfig(r=self.rank, lora_alpha=self.rank, init_lora_weights="gaussian", target_modules=names)
            pipe.unet.add_adapter(config, adapter_name=_ADAPTER)
        cast_training_params(pipe.unet, dtype=torch.float32)
        return pipe.unet  # type: ignore[no-any-return]

    def remove(self, pipe: Any) -> None:
        """Take the adapter off."""
        if _ADAPTER not in getattr(pipe.unet, "peft_config", {}):
            return
        pipe.unet.delete_adapters(_ADAPTER)
        if not getattr(pipe.unet, "peft_config", None):
            pipe.unet.unload_lora()  # no other adapter: the layers themselves come back

    def begin(self, seeds: Sequence[int]) -> None:
        """Nothing to prepare."""

    def evaluate(self) -> None:
        """Nothing to switch."""

    def save(self, pipe: Any, folder: Path, card: Mapping[str, Any]) -> Path:
        """Write `lora/pytorch_lora_weights.safetensors`, which `pipe.load_lora_weights` reads."""
        from diffusers.utils import convert_state_dict_to_diffusers
        from peft.utils import get_peft_model_state_dict

        part, path = folder / "lora.part", folder / "lora"
        layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(pipe.unet, adapter_name=_ADAPTER))
        pipe.save_lora_weights(part, unet_lora_layers=layers)
        return _put(part, path)

    @property
    def settings(self) -> dict[str, Any]:
        """Targets and rank."""
        return {"targets": self.targets, "rank": self.rank}


class TrainFull(Method):
    """Fine-tune every weight of the U-Net.

    Args:
        dropout: probability of the U-Net's dropout layers while it trains, in [0, 1).
    """

    name: ClassVar[str] = "full"
    learning_rate: ClassVar[float] = 1e-5

    def __init__(self, *, dropout: float = 0.0) -> None:
        if not 0 <= dropout < 1:
            raise DataError(f"expected dropout in [0, 1), got {dropout}")
        self.dropout = dropout
        self._unet: Any = None
        self._before: dict[str, float] = {}

    def install(self, pipe: Any, seed: int) -> nn.Module:
        """Unfreeze the U-Net."""
        self._unet = pipe.unet
        if self._unet.dtype != torch.float32:
            raise DataError(
                f"expected a U-Net in float32 for full fine-tuning, got {self._unet.dtype}; load the pipeline with "
                "dtype=torch.float32 and use mixed_precision"
            )
        self._unet.requires_grad_(True)
        for name, module in self._unet.named_modules():
            if isinstance(module, nn.Dropout):
                self._before[name], module.p = module.p, self.dropout
        return pipe.unet  # type: ignore[no-any-return]

    def remove(self, pipe: Any) -> None:
        """Freeze the U-Net again and give its dropout layers their former probability; the weights stay."""
        for name, probability in self._before.items():
            self._unet.get_submodule(name).p = probability
        if self._unet is not None:
            self._unet.eval()

    def begin(self, seeds: Sequence[int]) -> None:
        """Dropout on."""
        self._unet.train(self.dropout > 0)

    def evaluate(self) -> None:
        """Dropout off."""
        self._unet.eval()

    def save(self, pipe: Any, folder: Path, card: Mapping[str, Any]) -> Path:
        """Write `unet/` in the diffusers format."""
        part, path = folder / "unet.part", folder / "unet"
        pipe.unet.save_pretrained(part)
        return _put(part, path)

    @property
    def settings(self) -> dict[str, Any]:
        """The dropout."""
        return {"dropout": self.dropout}


class TrainMasksWithLora(TrainMasks):
    """Train a masker and a LoRA together. Masks act on the frozen weights, not on the LoRA beside them."""

    name: ClassVar[str] = "mask+lora"

    def __init__(self, masker: Masker, lora: TrainLora, *, gumbel: bool = True, density: bool = False) -> None:
        super().__init__(masker, gumbel=gumbel, density=density)
        self.lora = lora

    def install(self, pipe: Any, seed: int) -> nn.Module:
        """Add the adapter, then attach the masker."""
        unet = self.lora.install(pipe, seed)
        return nn.ModuleList([super().install(pipe, seed), unet])

    def remove(self, pipe: Any) -> None:
        """Take both off."""
        super().remove(pipe)
        self.lora.remove(pipe)

    def save(self, pipe: Any, folder: Path, card: Mapping[str, Any]) -> Path:
        """Write `masker/` and `lora/`."""
        self.lora.save(pipe, folder, card)
        return super().save(pipe, folder, card)

    @property
    def settings(self) -> dict[str, Any]:
        """Both methods' settings."""
        return super().settings | {"lora": self.lora.settings}


METHODS: tuple[str, ...] = ("mask", "lora", "full", "mask+lora")


def build_method(
    name: str,
    pipe: Any,
    mask: TrainableConfig | None = None,
    *,
    gumbel: bool = True,
    density: bool = False,
    rank: int = 16,
    dropout: float = 0.0,
    seed: int = 0,
) -> Method:
    """Return a method by its name.

    Args:
        name: one of `METHODS`.
        pipe: the pipeline that it will train on.
        mask: settings of the masker, low-rank or the paper's; its targets are LoRA's as well.
        gumbel: draw masks with Gumbel noise.
        density: collect P(keep) for a target density.
        rank: rank of LoRA.
        dropout: dropout of full fine-tuning.
        seed: seed of the generator's random start.

    Raises:
        DataError: no method has that name.
        TargetError: the targets match nothing, or something that cannot be masked.
    """
    mask = mask or LowRankMaskerConfig()
    if name == "full":
        return TrainFull(dropout=dropout)
    if name == "lora":
        return TrainLora(mask.targets, rank=rank)
    if name not in METHODS:
        raise DataError(f"expected a method ({', '.join(METHODS)}), got {name!r}")
    masker = build_masker(pipe.unet, mask, seed=seed)
    if name == "mask":
        return TrainMasks(masker, gumbel=gumbel, density=density)
    return TrainMasksWithLora(masker, TrainLora(mask.targets, rank=rank), gumbel=gumbel, density=density)
