r"""SynGen: generation whose latents follow the gradient of a loss on cross-attention maps.

Before each of the first denoising steps (half of them) the latents :math:`z_t` take one gradient step,

.. math:: z_t \leftarrow z_t - \eta \nabla_{z_t} L(A(z_t, t, c)),

where A are the maps of a U-Net call on the prompts alone (no unconditional half), averaged over the heads of all layers
of one resolution, and L is `loss.binding_loss`. Weights and masks are constants: no gradient flows to the inputs that a
masker is conditioned on.

Beyond the original: prompts are guided in batches, each by its own loss; with schedulers that do not keep latents scaled
(Euler), the scaled latents take the step, so that :math:`\eta` means the same for all.

Reference: Rassin et al., "Linguistic Binding in Diffusion Models: Enhancing Attribute Correspondence through Attention Map
Alignment", NeurIPS 2023, section 3 and appendix; the authors' code where the paper leaves a choice open.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..attaching import attachment_of, disabled
from ..errors import DataError
from ..maskers import parts_of
from ..sampling.freezing import frozen
from ..sampling.generation import Side
from ..sampling.guidance_scale import default_guidance_scale
from ..sampling.inputs import SamplingOptions
from ..sampling.offload import upcast_decoder, without_offload
from ..sampling.result import GeneratedImages
from ..sampling.stepwise import StepwiseSampler
from ..settings import integer, number
from ..targets import unet_of
from .attention_maps import capture_maps, cross_attention
from .loss import binding_loss
from .phrases import PhraseParser, syntax_phrases
from .tokens import PromptTokens, locate_tokens

logger = logging.getLogger(__name__)

#: The authors' length of the gradient step.
SCALE = 20.0
_MIN_ROWS = 8  # coarser maps hardly separate two objects


@dataclass(frozen=True)
class SynGenOptions(SamplingOptions):
    """Options of `syngen`, checked.

    Args:
        scale: length eta of the gradient step, >= 0.
        steps: guided denoising steps, from the first; half of all steps if None.
        resolution: rows of the attention maps in the loss; chosen by the latents' size if None.

    Raises:
        SettingError: an option is out of range.
    """

    num_inference_steps: int = integer(50, at_least=1, at_most=1000)
    scale: float = number(SCALE, at_least=0)
    steps: int | None = integer(None, at_least=0, optional=True)
    resolution: int | None = integer(None, at_least=1, optional=True)


@torch.inference_mode(False)
def syngen(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    phrases: PhraseParser | None = None,
    scale: float = SCALE,
    steps: int | None = None,
    resolution: int | None = None,
    num_inference_steps: int = 50,
    guidance_scale: float | None = None,
    **options: Any,
) -> GeneratedImages:
    """Generate images with the attention of each modifier bound to that of its noun.

    A prompt without phrases is sampled without guidance by attention. An image does not depend on the others of its batch.

    Args:
        pipe: a Stable Diffusion pipeline (1.x, 2.x, XL), with or without masks; it is restored afterwards, also after an
            error.
        prompts: B captions.
        seeds: one seed per prompt.
        phrases: parser of nouns and modifiers; spaCy's dependencies (`syntax_phrases`) if None.
        scale: length eta of the gradient step, >= 0; the original's is 20.
        steps: guided denoising steps, from the first; half of all steps if None.
        resolution: rows of the attention maps in the loss, >= 1. If None a quarter of the latents', as in the original (16
            for 512 pixels, 24 for 768), and at least 8.
        num_inference_steps: denoising steps, 1 to 1000; 50 in the original.
        guidance_scale: strength of classifier-free guidance; 1 or less switches it off. 7.5, or 4 with the bundled model,
            if None.
        options: further options of `StepwiseSampler`: guidance_rescale, negative_prompt, height, width, eta.

    Raises:
        SettingError: an option out of range, or another number of seeds.
        DataError: spaCy or its model is missing, a prompt's phrases lie beyond the token limit, attention processors do
            more than plain attention or have no maps of this resolution, the U-Net is offloaded by groups of layers, or
            `StepwiseSampler` refuses the pipeline.
    """
    guidance_scale = default_guidance_scale(pipe) if guidance_scale is None else guidance_scale
    settings = {
        "num_inference_steps": num_inference_steps,
        "guidance_scale": guidance_scale,
        "syngen_scale": scale,
        "scheduler": type(pipe.scheduler).__name__,
    }
    if rescale := options.get("guidance_rescale"):
        settings["guidance_rescale"] = rescale
    sampling = options | {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
    SynGenOptions(scale=scale, steps=steps, resolution=resolution, **sampling)
    parse = phrases or syntax_phrases()
    attached = attachment_of(pipe)
    masker = None if attached is None else attached.masker
    maskers = [masker] if isinstance(masker, nn.Module) else []
    with without_offload(pipe.unet), frozen(pipe, *maskers), upcast_decoder(pipe):
        sampler = StepwiseSampler(pipe, prompts, seeds=seeds, **sampling)
        tokenizer = getattr(pipe, "tokenizer", None) or pipe.tokenizer_2
        tokens = [locate_tokens(tokenizer, prompt, parse(prompt)) for prompt in sampler.prompts]
        guide = Guide(sampler, tokens, resolution)
        guided_steps = len(sampler.timesteps) // 2 if steps is None else steps
        while not sampler.is_finished:
            if sampler.index < guided_steps and guide.has_phrases:
                guide.take_step(scale)
            with torch.no_grad():
                sampler.advance(sampler.predict())
        images = sampler.final_images()
    return GeneratedImages(images, sampler.prompts, sampler.seeds, settings)


def syngen_side(pipe: Any, *, masks: bool = True, phrases: PhraseParser | None = None, **options: Any) -> Side:
    """Return the side that generates by SynGen.

    Args:
        pipe: a Stable Diffusion pipeline.
        masks: generate with the attached masks, if any; without them if false.
        phrases: parser of nouns and modifiers; spaCy's dependencies if None.
        options: options of `syngen`.

    Raises:
        SettingError: an option out of range.
        DataError: spaCy or its model is missing, or the attention processors do more than plain attention.
    """
    SynGenOptions(**options)
    parse = phrases or syntax_phrases()  # fails here rather than in the middle of a benchmark
    cross_attention(unet_of(pipe))

    def run(prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        with contextlib.nullcontext() if masks else disabled(pipe):
            return syngen(pipe, prompts, seeds, phrases=parse, **options).tensor

    return run


class Guide:
    """The loss of a batch at the next step, and its gradient step.

    Args:
        sampler: the sampling loop.
        prompts: tokens of each prompt.
        resolution: rows of the attention maps in the loss; chosen by the latents' size if None.

    Raises:
        DataError: a prompt has phrases, and the attention processors do more than plain attention.
    """

    def __init__(self, sampler: StepwiseSampler, prompts: Sequence[PromptTokens], resolution: int | None) -> None:
        self.sampler, self.prompts = sampler, prompts
        self.unet = unet_of(sampler.pipe)
        self.has_phrases = any(prompt.phrases for prompt in prompts)
        height, width = sampler.latents.shape[2:]
        rows = resolution or max(math.ceil(height / 4), min(height, _MIN_ROWS))
        self.positions = rows * math.ceil(width * rows / height)
        if self.has_phrases:
            cross_attention(self.unet)

    def gradient(self) -> tuple[Tensor, Tensor]:
        """Return the loss of each prompt, (B,), and the gradient of their sum by the latents, (B, C, h, w), float32.

        Raises:
            DataError: no layer has maps of this resolution, or the gradient is not finite.
        """
        sampler, latents = self.sampler, self.sampler.latents
        leaf = latents.detach().clone().requires_grad_(True)
        try:
            sampler.latents = leaf
            with torch.enable_grad(), _unobserved(sampler.pipe), capture_maps(self.unet, self.positions) as captured:
                self._call_unet()
                maps = captured.mean()[-len(self.prompts) :]  # the conditional half is the second
                losses = torch.stack([binding_loss(m, p) for m, p in zip(maps, self.prompts, strict=True)])
                if not losses.requires_grad:  # only single nouns without other words
                    return losses, torch.zeros_like(latents, dtype=torch.float32)
                return losses.detach(), _gradient(losses.sum(), leaf)
        finally:
            sampler.latents = latents

    def take_step(self, scale: float) -> None:
        """Move the latents by one gradient step.

        Args:
            scale: length eta of the step.
        """
        losses, gradient = self.gradient()
        logger.debug("step %d: binding loss %s", self.sampler.index, losses.tolist())
        latents = self.sampler.latents
        # With scaled latents c z, a step of c z by its own gradient is a step of z by the gradient by z over c^2.
        c = self.sampler.scheduler.scale_model_input(torch.ones((), device=latents.device), self.sampler.timestep)
        self.sampler.latents = (latents.float() - scale * gradient / float(c) ** 2).to(latents.dtype)

    def _call_unet(self) -> None:
        """Call the U-Net on the prompts alone; masks of a guided batch's second half need the guided batch."""
        attached = attachment_of(self.unet)
        masks_half = attached is not None and attached.enabled and attached.masker.guided_half is not None
        if masks_half or not self.sampler.is_guided:
            self.sampler.predict()
        else:
            self.sampler.predict_half(conditional=True)


def _gradient(loss: Tensor, latents: Tensor) -> Tensor:
    """Return the gradient in float32; in half precision the loss is scaled up, since gradients underflow."""
    for factor in (1024.0, 32.0, 1.0) if latents.dtype == torch.float16 else (1.0,):
        (gradient,) = torch.autograd.grad(loss * factor, latents, retain_graph=factor > 1)
        if bool(torch.isfinite(gradient).all()):
            return gradient.float() / factor
    raise DataError(f"expected finite gradients of the attention maps, got others in {latents.dtype}; try float32")


@contextlib.contextmanager
def _unobserved(pipe: Any) -> Iterator[None]:
    """Hide the calls inside the context from traces and counters of the attachment; masks are constants in them."""
    attached = attachment_of(pipe)
    if attached is None:
        yield
        return
    # Counters of calls lie in attributes and in dicts of the attachment and of the masker.
    states = [
        (owner, {name: copy.copy(value) if isinstance(value, dict) else value for name, value in vars(owner).items()})
        for owner in (attached, *parts_of(attached.masker))
    ]
    attached.is_frozen, attached.trace, attached.keep_probabilities = True, None, None
    try:
        yield
    finally:
        for owner, state in states:
            vars(owner).update(state)
