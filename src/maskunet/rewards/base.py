"""The reward seam: r(picture, prompt), one number a picture, higher is better, differentiable in the picture.

Rewards add up by arithmetic,

    R = sum_k w_k r_k        e.g. R = load("image-reward") + 5 * load("hpsv2"),

and a user's own is a function, or a subclass of `Reward` with a name and a `score`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ..errors import DataError, RewardError

# Decoded pictures overshoot [0, 1] a little before they are clamped; [-1, 1] and [0, 255] are another scale.
_LOWEST, _HIGHEST = -0.5, 1.5


class Reward(ABC):
    """A reward of pictures.

    Subclasses set `name`, and list in `models` the networks that `to` moves and casts, in `heads` those that it moves
    but keeps in float32.
    """

    name: str = ""
    models: Sequence[nn.Module] = ()
    heads: Sequence[nn.Module] = ()
    # So that a NumPy number times a reward asks the reward.
    __array_ufunc__: ClassVar[None] = None

    @abstractmethod
    def score(self, pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the rewards (B,) of pictures (B, 3, H, W) in [0, 1] for their B prompts, unchecked."""

    def __call__(self, pictures: Tensor, prompts: str | Sequence[str]) -> Tensor:
        """Return the rewards of pictures, checked.

        Args:
            pictures: (B, 3, H, W), floating, in [0, 1].
            prompts: one for each picture, or one for all.

        Returns:
            Rewards (B,), higher is better, with a gradient to the pictures if they ask for one.

        Raises:
            DataError: pictures or prompts that no reward can take.
            RewardError: the reward is not one number a picture, not finite, or cut off from the pictures' gradient.
        """
        given = _checked_inputs(pictures, prompts)
        return self._checked(self.score(pictures, given), pictures)

    def _checked(self, rewards: Any, pictures: Tensor) -> Tensor:
        label, count = self.name or type(self).__name__, len(pictures)
        if not isinstance(rewards, Tensor) or rewards.shape != (count,):
            came = f"shape {tuple(rewards.shape)}" if isinstance(rewards, Tensor) else type(rewards).__name__
            raise RewardError(
                f"expected reward {label!r} to return a tensor of shape ({count},), one number a picture, got {came}"
            )
        if not rewards.is_floating_point() or not bool(torch.isfinite(rewards).all()):
            raise RewardError(
                f"expected reward {label!r} to return finite numbers, got {rewards.detach().cpu().tolist()}; in half "
                "precision, try bfloat16 or float32"
            )
        if torch.is_grad_enabled() and pictures.requires_grad and not rewards.requires_grad:
            raise RewardError(
                f"expected reward {label!r} to be differentiable, its result does not require grad though the pictures "
                "do; look for no_grad, detach, numpy or PIL in it"
            )
        return rewards

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move the networks to a device and cast them, heads in float32 excepted.

        Raises:
            RewardError: `dtype` is not a floating one.
        """
        if dtype is not None and not dtype.is_floating_point:
            raise RewardError(f"expected a floating dtype for reward {self.name!r}, got {dtype}")
        for model in self.models:
            model.to(device=device, dtype=dtype)
        for head in self.heads:
            head.to(device=device)
        return self

    def enable_gradient_checkpointing(self) -> Self:
        """Recompute the networks' layers in backward instead of keeping their activations.

        Networks that do not support it run as they are.
        """
        for network in self.models:
            model: Any = network
            # Two names of one method; the former warns where the newer exists.
            enable = getattr(model, "activation_checkpointing_enable", None) or getattr(
                model, "gradient_checkpointing_enable", None
            )
            if enable is not None:
                enable({"use_reentrant": False})
                # transformers lets embeddings ask for a gradient, for adapters; here it comes from the pictures alone.
                if getattr(model, "_require_grads_hook", None) is not None:
                    model.disable_input_require_grads()
                # Layers recompute in training mode only; the rewards' networks are built without dropout.
                model.train()
        return self

    def __add__(self, other: Any) -> WeightedSum:
        if isinstance(other, Reward):
            return WeightedSum([*_terms(self), *_terms(other)])
        # sum() starts at 0.
        return WeightedSum(_terms(self)) if isinstance(other, Real) and other == 0 else NotImplemented

    __radd__ = __add__

    def __mul__(self, weight: Any) -> WeightedSum:
        if isinstance(weight, bool) or not isinstance(weight, Real):
            return NotImplemented
        return WeightedSum([(float(weight) * w, reward) for w, reward in _terms(self)])

    __rmul__ = __mul__

    def __truediv__(self, divisor: Any) -> WeightedSum:
        return self * (1 / float(divisor)) if isinstance(divisor, Real) and divisor else NotImplemented

    def __neg__(self) -> WeightedSum:
        return self * -1

    def __sub__(self, other: Any) -> WeightedSum:
        return self + -other if isinstance(other, Reward) else NotImplemented

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


class WeightedSum(Reward):
    """A weighted sum of rewards, R = sum_k w_k r_k; what arithmetic on rewards gives.

    Args:
        terms: weights and rewards; a reward that occurs twice is computed once, with the sum of its weights.

    Raises:
        RewardError: no terms, or a weight that is not finite.
    """

    def __init__(self, terms: Sequence[tuple[float, Reward]]) -> None:
        if not terms:
            raise RewardError("expected a sum of at least one reward, got none")
        self.terms: list[tuple[float, Reward]] = []
        for reward in {id(reward): reward for _, reward in terms}.values():
            weight = float(sum(w for w, other in terms if other is reward))
            if not math.isfinite(weight):
                raise RewardError(f"expected a finite weight for reward {reward.name!r}, got {weight}")
            self.terms.append((weight, reward))
        self.name = " + ".join(f"{weight:g} {reward.name}" for weight, reward in self.terms)
        self.models = [model for _, reward in self.terms for model in reward.models]
        self.heads = [head for _, reward in self.terms for head in reward.heads]

    def score(self, pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the weighted sum (B,); each term is checked, so that an error names it."""
        return torch.stack([weight * reward(pictures, prompts) for weight, reward in self.terms]).sum(0)


class FunctionReward(Reward):
    """A plain function as a reward.

    Args:
        function: takes pictures (B, 3, H, W) in [0, 1] and their B prompts, returns rewards (B,).
        name: what errors and sums call it; the function's name if None.
    """

    def __init__(self, function: Callable[[Tensor, Sequence[str]], Tensor], name: str | None = None) -> None:
        self.function = function
        self.name = name or str(getattr(function, "__name__", type(function).__name__))

    def score(self, pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return what the function returns."""
        return self.function(pictures, prompts)


def _terms(reward: Reward) -> list[tuple[float, Reward]]:
    return reward.terms if isinstance(reward, WeightedSum) else [(1.0, reward)]


def _checked_inputs(pictures: Any, prompts: str | Sequence[str]) -> list[str]:
    if not isinstance(pictures, Tensor) or pictures.ndim != 4 or pictures.shape[1] != 3 or not len(pictures):
        came = f"shape {tuple(pictures.shape)}" if isinstance(pictures, Tensor) else type(pictures).__name__
        raise DataError(f"expected pictures as a tensor (B, 3, H, W) with B >= 1, got {came}")
    if not pictures.is_floating_point():
        raise DataError(f"expected floating pictures in [0, 1], got {pictures.dtype}; divide bytes by 255")
    low, high = (float(bound) for bound in pictures.detach().aminmax())
    if not (low >= _LOWEST and high <= _HIGHEST):  # NaN fails both
        raise DataError(f"expected pictures in [0, 1], got values from {low:.3g} to {high:.3g}")
    given = [prompts] * len(pictures) if isinstance(prompts, str) else list(prompts)
    if len(given) != len(pictures) or not all(isinstance(prompt, str) for prompt in given):
        raise DataError(f"expected {len(pictures)} prompts, one a picture, or one string for all, got {len(given)}")
    return given
