"""The interface of rewards: r(image, prompt), one value per image, higher is better, differentiable in the image.

Rewards add up by arithmetic,

    R = sum_k w_k r_k        e.g. R = load("image-reward") + 5 * load("hpsv2"),

and your own is a function, or a subclass of `Reward` with a `name` and a `score`.
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
from ..moving import outside_inference_mode

# Decoded images overshoot [0, 1] a little before they are clamped; [-1, 1] and [0, 255] are another scale.
_LOWEST, _HIGHEST = -0.5, 1.5


class Reward(ABC):
    """A reward of images: call it with images and prompts, move it with `to`, add rewards with `+` and `*`.

    Subclasses set `name` and write `score`. They list their networks in `models`, which `to` moves and casts, and in
    `heads`, which `to` moves but keeps in float32.
    """

    name: str = ""
    models: Sequence[nn.Module] = ()
    heads: Sequence[nn.Module] = ()
    # Lets `np.float32(2) * reward` reach `__rmul__`.
    __array_ufunc__: ClassVar[None] = None

    @abstractmethod
    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the values of images, unchecked; calling the reward checks them.

        Args:
            images: (B, 3, H, W), floating, in [0, 1].
            prompts: B prompts, one per image.

        Returns:
            Values (B,), floating, higher is better, on the images' device.
        """

    def __call__(self, images: Tensor, prompts: str | Sequence[str]) -> Tensor:
        """Return the values of images, checked.

        Args:
            images: (B, 3, H, W), floating, in [0, 1].
            prompts: B prompts, one per image, or one string for all.

        Returns:
            Values (B,), higher is better, with a gradient to the images if these require one.

        Raises:
            DataError: images or prompts that no reward can take.
            RewardError: the values are not one per image, not finite, or cut off from the images' gradient.
        """
        prompts = _checked_inputs(images, prompts)
        return self._checked_values(self.score(images, prompts), images)

    def _checked_values(self, values: Any, images: Tensor) -> Tensor:
        label, count = self.name or type(self).__name__, len(images)
        if not isinstance(values, Tensor) or values.shape != (count,):
            shape = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
            raise RewardError(
                f"expected reward {label!r} to return a tensor of shape ({count},), one value per image, got {shape}"
            )
        if not values.is_floating_point() or not bool(torch.isfinite(values).all()):
            raise RewardError(
                f"expected reward {label!r} to return finite numbers, got {values.detach().cpu().tolist()}; in half "
                "precision, try bfloat16 or float32"
            )
        if torch.is_grad_enabled() and images.requires_grad and not values.requires_grad:
            raise RewardError(
                f"expected reward {label!r} to be differentiable, but its values have no gradient to the images; look for "
                "no_grad, detach, numpy or PIL in it"
            )
        return values

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move the networks to a device and cast them; `heads` stay in float32.

        Args:
            device: target device; unchanged if None.
            dtype: floating dtype of the networks; unchanged if None.

        Raises:
            RewardError: `dtype` is not a floating one.
        """
        if dtype is not None and not dtype.is_floating_point:
            raise RewardError(f"expected a floating dtype for reward {self.name!r}, got {dtype}")
        with outside_inference_mode():
            for model in self.models:
                model.to(device=device, dtype=dtype)
            for head in self.heads:
                head.to(device=device)
        return self

    def enable_gradient_checkpointing(self) -> Self:
        """Recompute the networks' layers in backward instead of storing their activations.

        Networks that do not support it run as they are.
        """
        for network in self.models:
            model: Any = network
            # Two names of one method; the older one warns where the newer exists.
            enable = getattr(model, "activation_checkpointing_enable", None) or getattr(
                model, "gradient_checkpointing_enable", None
            )
            if enable is not None:
                enable({"use_reentrant": False})
                # transformers makes the embeddings require a gradient, for adapters; here only the images have one.
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
    """A weighted sum of rewards, R = sum_k w_k r_k; the result of arithmetic on rewards.

    Args:
        terms: (weight, reward) pairs with finite weights. A reward that occurs twice is computed once, with the sum of
            its weights.

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

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the weighted sum; each term is checked, so that an error names it.

        Args:
            images: (B, 3, H, W), floating, in [0, 1].
            prompts: B prompts, one per image.

        Returns:
            Values (B,).
        """
        return torch.stack([weight * reward(images, prompts) for weight, reward in self.terms]).sum(0)


class FunctionReward(Reward):
    """A plain function as a reward.

    Args:
        function: takes images (B, 3, H, W) in [0, 1] and their B prompts, returns values (B,).
        name: name in errors and sums; the function's own if None.

    Raises:
        RewardError: `function` is not callable.
    """

    def __init__(self, function: Callable[[Tensor, Sequence[str]], Tensor], name: str | None = None) -> None:
        if not callable(function):
            raise RewardError(
                f"expected a reward, or a function (images, prompts) -> (B,), got {type(function).__name__}; load a reward "
                "by its name with maskunet.rewards.load"
            )
        self.function = function
        self.name = name or str(getattr(function, "__name__", type(function).__name__))

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the function's result.

        Args:
            images: (B, 3, H, W), floating, in [0, 1].
            prompts: B prompts, one per image.
        """
        return self.function(images, prompts)


def _terms(reward: Reward) -> list[tuple[float, Reward]]:
    return reward.terms if isinstance(reward, WeightedSum) else [(1.0, reward)]


def _checked_inputs(images: Any, prompts: str | Sequence[str]) -> list[str]:
    """Return one prompt per image."""
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != 3 or not len(images):
        shape = f"shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise DataError(f"expected images as a tensor (B, 3, H, W) with B >= 1, got {shape}")
    if not images.is_floating_point():
        raise DataError(f"expected floating images in [0, 1], got {images.dtype}; divide bytes by 255")
    low, high = (float(bound) for bound in images.detach().aminmax())
    if not (low >= _LOWEST and high <= _HIGHEST):  # NaN fails both
        raise DataError(f"expected images in [0, 1], got values from {low:.3g} to {high:.3g}")
    texts = [prompts] * len(images) if isinstance(prompts, str) else list(prompts)
    if len(texts) != len(images):
        raise DataError(f"expected {len(images)} prompts, one per image, or one string for all, got {len(texts)}")
    if wrong := [text for text in texts if not isinstance(text, str)]:
        raise DataError(f"expected {len(images)} prompts as strings, got a {type(wrong[0]).__name__}")
    return texts
