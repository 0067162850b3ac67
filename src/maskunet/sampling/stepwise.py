r"""A pipeline's sampling loop, one step at a time, so that a step can be evaluated many times before it is taken.

The scheduler is a copy and only `advance` calls its `step`: its history holds the steps that were taken and nothing of
what was tried. With the scheduler's scaled model input :math:`\bar x_t = \alpha_t x_0 + \sigma_t \epsilon`,
:math:`\alpha_t^2 + \sigma_t^2 = 1`, the predicted clean latents are

.. math::
    x_0 = (\bar x_t - \sigma_t \hat\epsilon) / \alpha_t \quad\text{or}\quad x_0 = \alpha_t \bar x_t - \sigma_t \hat v,

which holds for every scheduler of the family, whether it keeps latents scaled (DDIM, DPM-Solver++) or not (Euler).
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import DataError
from .offload import upcast_decoder, without_offload

logger = logging.getLogger(__name__)

#: Schedulers whose steps the formulas above describe; each is tested against its pipeline.
SCHEDULERS = (
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
)
_warned: set[tuple[str, int]] = set()  # prompts that were said to be cut, and at how many tokens


class StepwiseSampler:
    """The sampling loop of a Stable Diffusion pipeline (1.x, 2.x, XL).

    With nothing between the steps it gives what the pipeline itself gives from the same seeds.

    Args:
        pipe: the pipeline; it is left as it is.
        prompts: B captions.
        seeds: a seed for each; noise is drawn on the CPU, so a seed means the same picture on every device.
        num_inference_steps: denoising steps, >= 1.
        guidance_scale: strength of classifier-free guidance; 1 or less switches it off.
        negative_prompt: what to steer away from.
        height, width: size of the pictures in pixels; the model's own if None.
        eta: share of fresh noise in DDIM's steps, in [0, 1]; other schedulers have no such setting.

    Raises:
        DataError: no prompts, another number of seeds, no step, a size that the autoencoder cannot give, a pipeline that
            does more than text to image, or a scheduler that is not among `SCHEDULERS`.
    """

    def __init__(
        self,
        pipe: Any,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int],
        num_inference_steps: int,
        guidance_scale: float,
        negative_prompt: str | None = None,
        height: int | None = None,
        width: int | None = None,
        eta: float = 0.0,
    ) -> None:
        if isinstance(prompts, str):
            raise DataError(f"expected a list of prompts, got the text {prompts!r}; put it into a list")
        if not prompts or len(seeds) != len(prompts):
            raise DataError(f"expected prompts and a seed for each, got {len(prompts)} prompts and {len(seeds)} seeds")
        if num_inference_steps < 1:
            raise DataError(f"expected at least one denoising step, got {num_inference_steps}")
        _check_pipeline(pipe)
        self.pipe, self.prompts = pipe, list(prompts)
        self.guidance_scale, self.guided = guidance_scale, guidance_scale > 1
        self.device, self.dtype = pipe._execution_device, pipe.unet.dtype
        kind = pipe.scheduler.config.prediction_type
        if kind not in ("epsilon", "v_prediction", "sample"):
            raise DataError(f"expected a scheduler that predicts epsilon, v_prediction or sample, got {kind!r}")
        self._steps, self._eta = num_inference_steps, eta
        factor = pipe.vae_scale_factor
        size = pipe.unet.config.sample_size
        across = (size, size) if isinstance(size, int) else tuple(size)
        self.height, self.width = height or across[0] * factor, width or across[1] * factor
        if self.height % factor or self.width % factor:
            raise DataError(f"expected height and width in multiples of {factor}, got {self.height} and {self.width}")
        with torch.no_grad():
            self.prompt_embeds, self.conditions = self._encode(negative_prompt)
        self._start(seeds)

    def _start(self, seeds: Sequence[int]) -> None:
        """Draw the noise of these seeds and stand before the first step."""
        pipe, count = self.pipe, len(self.prompts)
        self.seeds, self.index = [int(s) for s in seeds], 0
        self.scheduler = copy.deepcopy(pipe.scheduler)
        self.scheduler.set_timesteps(self._steps, device=self.device)
        self.timesteps: Tensor = self.scheduler.timesteps
        # The pipeline's own generators go on from here: ancestral schedulers draw from them at every step.
        self.generators = [torch.Generator().manual_seed(s) for s in self.seeds]
        with torch.no_grad():
            channels = pipe.unet.config.in_channels
            self.latents: Tensor = pipe.prepare_latents(
                count, channels, self.height, self.width, self.prompt_embeds.dtype, self.device, self.generators
            )
            # The pipeline scales noise by its own scheduler, which may have been set to another number of steps.
            theirs, ours = (float(s.init_noise_sigma) for s in (pipe.scheduler, self.scheduler))
            if theirs != ours:
                self.latents = self.latents / theirs * ours
        # The pipeline passes what its scheduler's `step` takes.
        self._options = pipe.prepare_extra_step_kwargs(self.generators, self._eta)

    def restarted(self, seeds: Sequence[int]) -> Self:
        """Return a sampler of the same prompts, encoded already, before its first step from the noise of other seeds."""
        other = copy.copy(self)
        other._start(seeds)
        return other

    def _encode(self, negative_prompt: str | None) -> tuple[Tensor, dict[str, Any]]:
        """Embeddings (B or 2 B, L, D), unconditional rows first, and SDXL's added conditions."""
        pipe, count = self.pipe, len(self.prompts)
        _warn_if_cut(pipe, self.prompts, "prompt")
        if negative_prompt is not None and self.guided:
            _warn_if_cut(pipe, [negative_prompt], "negative prompt")
        negative = None if negative_prompt is None else [negative_prompt] * count
        found = pipe.encode_prompt(
            self.prompts,
            device=self.device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=self.guided,
            negative_prompt=negative,
        )
        embeds = torch.cat([found[1], found[0]]) if self.guided else found[0]
        if len(found) == 2:
            return embeds, {}
        pooled = torch.cat([found[3], found[2]]) if self.guided else found[2]
        size = (self.height, self.width)
        encoder = getattr(pipe, "text_encoder_2", None)
        dim = int(found[2].shape[-1]) if encoder is None else encoder.config.projection_dim
        ids = pipe._get_add_time_ids(size, (0, 0), size, dtype=embeds.dtype, text_encoder_projection_dim=dim)
        conditions = {"text_embeds": pooled, "time_ids": ids.to(self.device).repeat(len(embeds), 1)}
        return embeds, {"added_cond_kwargs": conditions}

    @property
    def finished(self) -> bool:
        """Whether every step has been taken."""
        return self.index >= len(self.timesteps)

    @property
    def timestep(self) -> Tensor:
        """The timestep of the step that comes next."""
        return self.timesteps[self.index]

    def scaled(self, samples: Sequence[int] | None = None) -> Tensor:
        """Return the scheduler's scaled latents (B, C, h, w) of the step that comes next; of some samples, if given."""
        if hasattr(self.scheduler, "_init_step_index") and self.scheduler.step_index is None:
            self.scheduler._init_step_index(self.timestep)
        latents = self.latents if samples is None or len(samples) == len(self.prompts) else self.latents[samples]
        return self.scheduler.scale_model_input(latents, self.timestep)  # type: ignore[no-any-return]

    def predict(self, samples: Sequence[int] | None = None) -> Tensor:
        """Call the U-Net on the step that comes next and return its guided output (B, C, h, w).

        Args:
            samples: numbers of the M samples to compute, ascending; the output is (M, C, h, w). All of them if None.
        """
        return self.predict_at(self.index, self.scaled(samples), samples)

    def predict_at(self, index: int, scaled: Tensor, samples: Sequence[int] | None = None) -> Tensor:
        """Call the U-Net on any latents as if they were those of step `index`, and return its guided output.

        Args:
            index: the step.
            scaled: the scheduler's scaled latents, (M, C, h, w).
            samples: numbers of the M samples; all of them if None.
        """
        if not self.guided:
            return self._call((0,), scaled, index, samples)
        without, with_text = self._call((0, 1), scaled, index, samples).chunk(2)
        return self.guide(without, with_text)

    def predict_half(self, conditional: bool, samples: Sequence[int] | None = None) -> Tensor:
        """Call the U-Net on one half of the guided batch alone, (B, C, h, w); on some samples, if given."""
        return self._call((1,) if conditional else (0,), self.scaled(samples), self.index, samples)

    def guide(self, without: Tensor, with_text: Tensor) -> Tensor:
        """Return the guided output for the two halves."""
        return without + self.guidance_scale * (with_text - without)

    def _call(self, halves: tuple[int, ...], latents: Tensor, index: int, samples: Sequence[int] | None) -> Tensor:
        count = len(self.prompts)
        rows: slice | list[int] = slice(halves[0] * count, (halves[-1] + 1) * count)
        if len(latents) < count and samples is not None:
            rows = [half * count + i for half in halves for i in samples]
        conditions = {
            name: {key: value[rows] for key, value in values.items()} for name, values in self.conditions.items()
        }
        return self.pipe.unet(  # type: ignore[no-any-return]
            torch.cat([latents] * len(halves)),
            self.timesteps[index],
            encoder_hidden_states=self.prompt_embeds[rows],
            return_dict=False,
            **conditions,
        )[0]

    def scales(self, index: int | None = None) -> tuple[float, float]:
        """Return alpha_t and sigma_t of step `index`, of the one that comes next if None."""
        index = self.index if index is None else index
        sigmas = getattr(self.scheduler, "sigmas", None)
        if sigmas is not None and len(sigmas) >= len(self.timesteps):
            sigma = float(sigmas[index])
            alpha = (1 + sigma**2) ** -0.5
            return alpha, sigma * alpha
        # A step may lie between two of training, or past the last.
        t = min(max(round(float(self.timesteps[index])), 0), len(self.scheduler.alphas_cumprod) - 1)
        product = float(self.scheduler.alphas_cumprod[t])
        return product**0.5, (1 - product) ** 0.5

    def pred_x0(self, output: Tensor, samples: Sequence[int] | None = None) -> Tensor:
        """Return the predicted clean latents (B, C, h, w) for an output of `predict`, of the same samples."""
        return self.clean_at(self.index, self.scaled(samples), output)

    def clean_at(self, index: int, scaled: Tensor, output: Tensor) -> Tensor:
        """Return the predicted clean latents for an output of `predict_at`, of the same step and scaled latents."""
        kind = self.scheduler.config.prediction_type
        if kind == "sample":
            return output
        alpha, sigma = self.scales(index)
        if kind == "v_prediction":
            return alpha * scaled - sigma * output
        return (scaled - sigma * output) / alpha

    def advance(self, output: Tensor, *, gradient: bool = False) -> None:
        """Take the step with an output of `predict`, cut off from its gradient unless asked for."""
        with torch.set_grad_enabled(gradient):
            given = output if gradient else output.detach()
            self.latents = self.scheduler.step(given, self.timestep, self.latents, **self._options, return_dict=False)[
                0
            ]
        self.index += 1

    @torch.no_grad()
    def finish(self) -> Tensor:
        """Take the steps that are left, without gradient, and return the pictures (B, 3, H, W) in [0, 1], on the CPU."""
        while not self.finished:
            self.advance(self.predict())
        with without_offload(self.pipe.vae), upcast_decoder(self.pipe):
            return self.decode(self.latents).cpu()

    def decode(self, latents: Tensor, decoder: Any = None) -> Tensor:
        """Decode clean latents to pictures (B, 3, H, W) in [0, 1]; gradients flow.

        Args:
            latents: scaled latents, as the U-Net sees them.
            decoder: another decoder with the same latents, as `AutoencoderTiny`; the pipeline's own if None.
        """
        vae = self.pipe.vae if decoder is None else decoder
        mean, std = (getattr(vae.config, name, None) for name in ("latents_mean", "latents_std"))
        if mean is not None and std is not None:
            mean, std = (latents.new_tensor(x).view(1, -1, 1, 1) for x in (mean, std))
            latents = latents * std + mean * vae.config.scaling_factor
        z = latents / vae.config.scaling_factor + (getattr(vae.config, "shift_factor", None) or 0.0)
        with torch.autocast(z.device.type, enabled=False):  # in the decoder's own precision, as the pipeline does
            pictures = vae.decode(z.to(vae.dtype), return_dict=False)[0]
        return (pictures.float() / 2 + 0.5).clamp(0, 1)  # type: ignore[no-any-return]

    def preview(self, latents: Tensor, size: int | None, decoder: Any = None) -> Tensor:
        """Decode clean latents that are averaged down to pictures of about `size` pixels a side, never below.

        Args:
            latents: as for `decode`.
            size: in pixels; None decodes them whole.
            decoder: as for `decode`.
        """
        factor = 1 if size is None else min(self.height, self.width) // size
        return self.decode(latents if factor < 2 else F.avg_pool2d(latents, factor), decoder)


def _check_pipeline(pipe: Any) -> None:
    kind = type(pipe.scheduler).__name__
    if kind not in SCHEDULERS:
        raise DataError(f"expected a scheduler among {', '.join(SCHEDULERS)}, got {kind}; set pipe.scheduler to one")
    unet, vae = pipe.unet.config, pipe.vae.config
    if unet.in_channels != vae.latent_channels or getattr(unet, "time_cond_proj_dim", None) is not None:
        raise DataError(
            f"expected a text-to-image U-Net of {vae.latent_channels} input channels without guidance embedding, got "
            f"{unet.in_channels} channels; inpainting, image-to-image and distilled (LCM) models are not supported"
        )


def _warn_if_cut(pipe: Any, prompts: Sequence[str], what: str) -> None:
    """Say what a tokenizer cuts off; the pipelines' own note is easily lost among others."""
    # SDXL's two have the same words and limit; a refiner has the second alone.
    tokenizer = getattr(pipe, "tokenizer", None) or getattr(pipe, "tokenizer_2", None)
    if tokenizer is None:
        return
    limit = tokenizer.model_max_length
    for prompt in dict.fromkeys(prompts):
        if (prompt, limit) in _warned:
            continue
        ids = tokenizer(prompt, truncation=False, verbose=False).input_ids
        if len(ids) > limit:
            _warned.add((prompt, limit))
            cut = tokenizer.decode(ids[limit - 1 : -1], skip_special_tokens=True)
            logger.warning("the %s has %d tokens, the text encoder takes %d; cut off: %r", what, len(ids), limit, cut)
