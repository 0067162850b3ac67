"""Settings of the trainable maskers. Nothing here imports torch, so that the command line can show them at once."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import SettingError
from ..settings import Settings, Targets, flag, integer, layer_targets, number

#: Wider maskers than this do not fit into memory.
_WIDEST = 2**16


@dataclass(frozen=True)
class ConditionalConfig(Settings):
    """Settings of every conditional masker.

    Args:
        targets: the masked layers; a preset, a regular expression or a list of suffixes.
        initial_logit: value of every logit before training.
        tau: temperature of the straight-through gradient, > 0.
        use_timestep: whether masks depend on the timestep embedding.
        use_sample: whether masks depend on the features at the block's entry.

    Raises:
        SettingError: a setting is out of range, or both conditions are switched off.
    """

    targets: Targets = layer_targets("decoder-attention")
    initial_logit: float = number(1.0)
    tau: float = number(1.0, above=0)
    use_timestep: bool = flag(True)
    use_sample: bool = flag(True)

    def check(self) -> None:
        """Refuse a masker without a condition.

        Raises:
            SettingError: both conditions are off.
        """
        if not (self.use_timestep or self.use_sample):
            raise SettingError(
                "expected use_timestep or use_sample to be on, both are off; use LowRankMaskerConfig for masks that depend "
                "on neither"
            )


@dataclass(frozen=True)
class LowRankMaskerConfig(ConditionalConfig):
    """Settings of a `LowRankMasker`; with both conditions off, its masks can be merged into the weights.

    Args:
        targets: the masked layers; a preset, a regular expression or a list of suffixes.
        initial_logit: value of every logit before training.
        tau: temperature of the straight-through gradient, > 0.
        rank: r, at least 2; one of the r columns carries the row term.
        hidden: H, width of h_b, at least 1.
        use_timestep: whether masks depend on the timestep embedding.
        use_sample: whether masks depend on the features at the block's entry.
    """

    rank: int = integer(16, at_least=2, at_most=_WIDEST)
    hidden: int = integer(64, at_least=1, at_most=_WIDEST)

    def check(self) -> None:
        """Accept any conditions, also none."""


@dataclass(frozen=True)
class MaskGeneratorConfig(ConditionalConfig):
    """Settings of a `MaskGenerator`.

    Args:
        targets: the masked layers; a preset, a regular expression or a list of suffixes.
        initial_logit: value of every logit before training; 5 keeps a weight with probability 1 - 4e-65 under noise.
        tau: temperature of the straight-through gradient, > 0.
        hidden: width of h_b, at least 1.
        reduction: f, the factor by which Z_b is smaller than the block's channels, at least 1.
        use_timestep: whether masks depend on the timestep embedding.
        use_sample: whether masks depend on the features at the block's entry.
    """

    hidden: int = integer(64, at_least=1, at_most=_WIDEST)
    reduction: int = integer(4, at_least=1)


#: Settings of a trainable masker.
TrainableConfig = LowRankMaskerConfig | MaskGeneratorConfig
