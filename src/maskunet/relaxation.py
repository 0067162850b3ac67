r"""From mask logits to binary masks: Gumbel-sigmoid with a straight-through gradient, and its deterministic threshold.

With logits :math:`S` and Gumbel(0, 1) noise :math:`g`, the mask is

.. math:: m = 1[\sigma((S + g) / \tau) > 1/2], \qquad P(m = 1) = 1 - \exp(-\exp(S)),

and its gradient is that of the soft value :math:`\sigma((S + g) / \tau)` (straight-through). Without noise a weight is
kept iff :math:`P(m = 1) \ge 1/2`, that is iff :math:`S \ge \log\log 2 \approx -0.3665`; the soft value is then that of
:math:`S - \log\log 2`. Here 1 keeps a weight and 0 switches it off.

Reference: Wang et al., "Not All Parameters Matter", CVPR 2025, section 3.2.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import torch
from torch import Tensor

from .errors import SettingError

#: Least logit that keeps its weight without noise: P(m = 1) = 1/2.
THRESHOLD = math.log(math.log(2.0))
_SURE = 10.0


class _StraightThrough(torch.autograd.Function):
    """Binary value forward, gradient of the sigmoid backward.

    The sigmoid is computed in the backward pass, so that one tensor is saved instead of four.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, keep_equal: bool) -> Tensor:
        ctx.save_for_backward(scores)
        # Scores against 0, not their sigmoid against 1/2: the same up to rounding at a large tau.
        return (scores >= 0 if keep_equal else scores > 0).to(scores.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        soft = torch.sigmoid(ctx.saved_tensors[0])
        return torch.ops.aten.sigmoid_backward(grads[0], soft), None  # one pass over up to 49 M numbers


def gumbel_sigmoid(logits: Tensor, noise: Tensor, tau: float = 1.0) -> Tensor:
    """Draw binary masks from logits and given Gumbel noise.

    Args:
        logits: S, any shape.
        noise: g ~ Gumbel(0, 1), broadcastable to the logits.
        tau: temperature of the soft value, > 0; it changes the gradient and not the mask.

    Returns:
        Masks of 0 and 1 in the logits' dtype, with the straight-through gradient.

    Raises:
        SettingError: `tau` is not positive and finite.

    Reference: MaskUNet, section 3.2.
    """
    _check(tau)
    scores = logits + noise
    if _can_compare(scores):
        return hard_mask(scores, is_noisy=True, out=scores)
    return _StraightThrough.apply(_scaled(scores, tau), False)


def threshold(logits: Tensor, tau: float = 1.0) -> Tensor:
    """Return the deterministic masks of logits: a weight is kept iff P(m = 1) >= 1/2, that is S >= log log 2.

    Args:
        logits: S, any shape.
        tau: temperature of the straight-through gradient, > 0.

    Returns:
        Masks of 0 and 1 in the logits' dtype, with the gradient of sigmoid((S - log log 2) / tau).

    Raises:
        SettingError: `tau` is not positive and finite.
    """
    _check(tau)
    if _can_compare(logits):
        return hard_mask(logits, is_noisy=False)
    return _StraightThrough.apply(_scaled(logits - THRESHOLD, tau), True)


def hard_mask(scores: Tensor, is_noisy: bool, out: Tensor | None = None) -> Tensor:
    """Return the masks of scores as numbers 0 and 1, without a gradient.

    Args:
        scores: S + g, or S alone, any shape, in single precision at least.
        is_noisy: whether the scores hold noise; a weight is then kept above 0, else from log log 2 on.
        out: tensor to write to, of any dtype, possibly `scores` itself; a new one of their dtype if None.
    """
    # Numbers, since every product would convert booleans: a layer of 1280 x 1280 takes half the time.
    out = torch.empty_like(scores) if out is None else out
    return torch.gt(scores, 0, out=out) if is_noisy else torch.ge(scores, THRESHOLD, out=out)


def _can_compare(scores: Tensor) -> bool:
    """Whether a comparison is enough: no gradient is needed, and half precision does not round the threshold."""
    needs_grad = torch.is_grad_enabled() and scores.requires_grad
    return not needs_grad and scores.dtype in (torch.float32, torch.float64)


def _check(tau: float) -> None:
    if not 0 < tau < math.inf:
        raise SettingError(f"expected a finite temperature tau > 0, got {tau}")


def _scaled(scores: Tensor, tau: float) -> Tensor:
    return scores if tau == 1 else scores / tau


def gumbel_noise(
    shape: tuple[int, ...],
    seed: int | torch.Generator,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Draw Gumbel(0, 1) noise.

    Args:
        shape: shape of the noise.
        seed: a seed, or a generator on `device`, which is advanced.
        device: device of the noise; the same seed gives the same noise on the same kind of device.
        dtype: dtype of the noise.
    """
    generator = seed
    if not isinstance(generator, torch.Generator):
        generator = torch.Generator(device).manual_seed(generator)
    # -log(-log(u)) of a uniform u is five times faster on a CPU than an exponential draw, which is serial there. It is
    # computed in single precision for every dtype, since u may be neither 0 nor 1.
    uniform = torch.rand(shape, generator=generator, device=device, dtype=torch.float32)
    return uniform.clamp_(min=torch.finfo(torch.float32).tiny).log_().neg_().log_().neg_().to(dtype)


def derive_seed(*parts: object) -> int:
    """Return a 63-bit seed that depends on the parts alone and is the same on every machine.

    Args:
        parts: values whose `str` and order make the seed.
    """
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def keep_probability(logits: Tensor) -> Tensor:
    """Return P(m = 1) = 1 - exp(-exp(S)), with a gradient at every logit.

    Args:
        logits: S, any shape and floating dtype; half precision is computed in float32.
    """
    # exp(S) overflows at S = 88.7 in float32, and infinity times the zero of exp(-exp(S)) has no gradient. From S = 10 on,
    # P is 1 and its gradient 0 in every dtype.
    scores = logits if logits.dtype in (torch.float32, torch.float64) else logits.float()
    return -torch.expm1(-torch.exp(scores.clamp(max=_SURE))).to(logits.dtype)


def density(mask: Tensor, *, per_sample: bool = False) -> Tensor:
    """Return the kept fraction of masks.

    Args:
        mask: masks of 0 and 1; (B, ...) if `per_sample`, else any shape.
        per_sample: return one value per entry of the first dimension.

    Returns:
        A float32 scalar, or (B,).
    """
    values = mask.float()
    return values.flatten(1).mean(1) if per_sample else values.mean()
