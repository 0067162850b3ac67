r"""SynGen: generation whose latents follow the gradient of a loss on cross-attention maps.

Before each of the first denoising steps (half of them) the latents :math:`z_t` take one gradient step,

.. math:: z_t \leftarrow z_t - \eta \nabla_{z_t} L(A(z_t, t, c)),

where A are the maps of a call of the U-Net on the prompt alone (no unconditional half), averaged over the heads of all
layers of one resolution, and L is `binding.binding_loss`. Weights, masks included, are constants: no gradient flows through
what a masker is conditioned on.

Beyond the original: prompts are guided in batches, each by its own loss; of schedulers that do not keep latents scaled
(Euler), the scaled latents take the step, so that :math:`\eta` means the same for all.

Reference: Rassin et al., "Linguistic Binding in Diffusion Models: Enhancing Attribute Correspondence through Attention Map
Alignment", NeurIPS 2023, section 3 and appendix; the authors' code where the paper leaves it open.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..attaching.attachment import attachment_of, disabled
from ..errors import DataError
from ..sampling.freezing import frozen
from ..sampling.generation import Side
from ..sampling.offload import upcast_decoder, without_offload
from ..sampling.result import GeneratedImages
from ..sampling.stepwise import StepwiseSampler
from ..targets import unet_of
from .attention_maps import captured, cross_attention
from .loss import binding_loss
from .phrases import Phrases, syntax_phrases
from .tokens import PromptTokens, locate

logger = logging.getLogger(__name__)

#: The authors' step along the gradient.
SCALE = 20.0
_SMALLEST = 8  # rows: coarser maps can hardly tell two objects apart


def syngen(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    phrases: Phrases | None = None,
    scale: float = SCALE,
    steps: int | None = None,
    resolution: int | None = None,
    num_inference_steps: int = 50,
    guidance_scale: float = 7.5,
    **options: Any,
) -> GeneratedImages:
    """Sample with each modifier's attention bound to its noun's.

    A prompt without phrases is sampled plainly, and a picture does not depend on what else is in the batch.

    Args:
        pipe: a Stable Diffusion pipeline (1.x, 2.x, XL), with or without masks. Whatever happens it is left as it was.
        prompts: B captions.
        seeds: a seed for each.
        phrases: finds nouns and their modifiers; spaCy's dependencies (`syntax_phrases`) if None.
        scale: length eta of the gradient step, >= 0; the original's is 20.
        steps: denoising steps that are guided, from the first; half of them if None.
        resolution: rows of the attention maps that count. If None a quarter of the latents', as in the original (16 for
            512 pixels, 24 for 768), and at least 8.
        num_inference_steps, guidance_scale: as the original's; guidance of 1 or less is none.
        options: further ones of `StepwiseSampler`: negative_prompt, height, width, eta.

    Raises:
        DataError: a setting out of range; spaCy or its model is missing; phrases that no token is left of; attention
            processors that do more than attend; no attention at this resolution; a U-Net offloaded by groups of layers; or
            what `StepwiseSampler` refuses.
    """
    if not (math.isfinite(scale) and scale >= 0):
        raise DataError(f"expected a scale of at least 0, got {scale}")
    if (steps is not None and steps < 0) or (resolution is not None and resolution < 1):
        raise DataError(f"expected steps of at least 0 and a resolution of at least 1, got {steps} and {resolution}")
    find = phrases or syntax_phrases()
    attached = attachment_of(pipe)
    masker = None if attached is None else attached.masker
    own = [masker] if isinstance(masker, nn.Module) else []
    with without_offload(pipe.unet), frozen(pipe, *own), upcast_decoder(pipe):
        sampler = StepwiseSampler(
            pipe,
            prompts,
            seeds=seeds,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            **options,
        )
        tokenizer = getattr(pipe, "tokenizer", None) or pipe.tokenizer_2
        guide = Guide(sampler, [locate(tokenizer, p, find(p)) for p in prompts], resolution)
        last = len(sampler.timesteps) // 2 if steps is None else steps
        while not sampler.finished:
            if sampler.index < last and guide.needed:
                guide.push(scale)
            with torch.no_grad():
                sampler.advance(sampler.predict())
        with torch.no_grad():
            images = sampler.decode(sampler.latents).cpu()
    settings = {
        "num_inference_steps": num_inference_steps,
        "guidance_scale": guidance_scale,
        "syngen_scale": scale,
        "scheduler": type(pipe.scheduler).__name__,
    }
    return GeneratedImages(images, list(prompts), list(seeds), settings)


def syngen_side(pipe: Any, *, masks: bool = True, phrases: Phrases | None = None, **options: Any) -> Side:
    """Return a function that generates pictures by SynGen from prompts and seeds, a side of a benchmark.

    Args:
        pipe: a Stable Diffusion pipeline.
        masks: generate with the masks that are attached, if any; without them if false.
        phrases: finds nouns and their modifiers; spaCy's dependencies if None.
        options: of `syngen`.

    Raises:
        DataError: spaCy or its model is missing, or the attention processors do more than attend.
    """
    find = phrases or syntax_phrases()  # errors before hours of work
    cross_attention(unet_of(pipe))

    def run(prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        with contextlib.nullcontext() if masks else disabled(pipe):
            return syngen(pipe, prompts, seeds, phrases=find, **options).tensor

    return run


class Guide:
    """The loss of a batch at the step that comes next, and its gradient step.

    Args:
        sampler: the sampling loop.
        prompts: the tokens of each prompt.
        resolution: see `syngen`.
    """

    def __init__(self, sampler: StepwiseSampler, prompts: Sequence[PromptTokens], resolution: int | None) -> None:
        self.sampler, self.prompts = sampler, prompts
        self.unet = unet_of(sampler.pipe)
        self.needed = any(p.bound for p in prompts)
        height, width = sampler.latents.shape[2:]
        rows = resolution or max(math.ceil(height / 4), min(height, _SMALLEST))
        self.positions = rows * math.ceil(width * rows / height)
        if self.needed:
            cross_attention(self.unet)

    def gradient(self) -> tuple[Tensor, Tensor]:
        """Return the loss of each prompt, (B,), and the gradient of their sum to the latents, (B, C, h, w), float32."""
        sampler, before = self.sampler, self.sampler.latents
        latents = before.detach().clone().requires_grad_(True)
        try:
            sampler.latents = latents
            with torch.enable_grad(), _aside(sampler.pipe), captured(self.unet, self.positions) as maps:
                self._call()
                found = maps.mean()[-len(self.prompts) :]  # the conditional half is the second
                losses = torch.stack([binding_loss(m, p) for m, p in zip(found, self.prompts, strict=True)])
                if not losses.requires_grad:  # single nouns with no other word to keep apart
                    return losses, torch.zeros_like(before, dtype=torch.float32)
                return losses.detach(), _gradient(losses.sum(), latents)
        finally:
            sampler.latents = before

    def push(self, scale: float) -> None:
        """Take the gradient step.

        Args:
            scale: its length eta.
        """
        losses, gradient = self.gradient()
        logger.debug("step %d: binding loss %s", self.sampler.index, losses.tolist())
        latents = self.sampler.latents
        # With scaled latents c z, a step of theirs is one of z by the gradient to z over c^2.
        one = self.sampler.scheduler.scale_model_input(torch.ones((), device=latents.device), self.sampler.timestep)
        self.sampler.latents = (latents.float() - scale * gradient / float(one) ** 2).to(latents.dtype)

    def _call(self) -> None:
        """Call the U-Net on the prompts alone; masks of a guided batch's second half need the whole of it."""
        attached = attachment_of(self.unet)
        whole = attached is not None and attached.enabled and getattr(attached.masker, "guided_half", None) is not None
        if whole or not self.sampler.guided:
            self.sampler.predict()
        else:
            self.sampler.predict_half(conditional=True)


def _gradient(loss: Tensor, latents: Tensor) -> Tensor:
    """The gradient in float32; in half precision it is scaled up so that it does not underflow."""
    for factor in (1024.0, 32.0, 1.0) if latents.dtype == torch.float16 else (1.0,):
        (found,) = torch.autograd.grad(loss * factor, latents, retain_graph=factor > 1)
        if bool(torch.isfinite(found).all()):
            return found.float() / factor
    raise DataError(f"expected finite gradients of the attention maps, got others in {latents.dtype}; try float32")


@contextlib.contextmanager
def _aside(pipe: Any) -> Iterator[None]:
    """Calls inside the context are neither recorded nor counted by what is attached, and masks are constants."""
    attached = attachment_of(pipe)
    if attached is None:
        yield
        return
    before = [(thing, dict(vars(thing))) for thing in (attached, attached.masker)]
    attached.constant, attached.trace, attached.keep_probabilities = True, None, None
    try:
        yield
    finally:
        for thing, state in before:
            vars(thing).update(state)
