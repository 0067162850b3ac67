r"""A pipeline's sampling loop, one step at a time, so that a step can be evaluated many times before it is taken.

The scheduler is a copy and only `advance` calls its `step`: its history holds the steps that were taken, never the trials.
With the scheduler's scaled model input :math:`\bar x_t = \alpha_t x_0 + \sigma_t \epsilon`,
:math:`\alpha_t^2 + \sigma_t^2 = 1`, the predicted clean latents are

.. math::
    x_0 = (\bar x_t - \sigma_t \hat\epsilon) / \alpha_t \quad\text{or}\quad x_0 = \alpha_t \bar x_t - \sigma_t \hat v,

which holds for every scheduler of the family, whether it keeps latents scaled (DDIM, DPM-Solver++) or not (Euler).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attaching.batch_layout import CONDITIONAL, UNCONDITIONAL, BatchLayout, batch_layout
from ..data.scaling import unscale_latents, uses_statistics
from ..errors import SettingError
from .final_step import final_images
from .guidance_scale import default_guidance_scale
from .inputs import SamplingOptions, checked_prompts, checked_seeds
from .prediction import clean_latents, guide
from .prompt_encoding import encode_prompts
from .supported_pipelines import check_pipeline, check_steps


class StepwiseSampler:
    """The sampling loop of a Stable Diffusion pipeline (1.x, 2.x, XL), one step at a time.

    With nothing between the steps, it returns what the pipeline itself returns for the same seeds.

    Args:
        pipe: the pipeline; it is not changed.
        prompts: B captions.
        seeds: one seed per prompt. Noise is drawn on the CPU, so a seed means the same image on every device.
        num_inference_steps: denoising steps, 1 to 1000.
        guidance_scale: strength of classifier-free guidance; 1 or less switches it off. The model's default if None.
        negative_prompt: prompt to steer away from.
        height: height of the images in pixels; the model's own if None.
        width: width of the images in pixels; the model's own if None.
        eta: share of fresh noise in DDIM's steps, in [0, 1]; other schedulers have no such setting.
        guidance_rescale: share of the guided output that is rescaled to the conditional one's deviation, in [0, 1].

    Raises:
        DataError: no prompts, or a pipeline or scheduler that `supported_pipelines` refuses.
        SettingError: another number of seeds, an option out of range, or a size that the autoencoder cannot decode.
    """

    def __init__(
        self,
        pipe: Any,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int],
        num_inference_steps: int,
        guidance_scale: float | None = None,
        negative_prompt: str | None = None,
        height: int | None = None,
        width: int | None = None,
        eta: float = 0.0,
        guidance_rescale: float = 0.0,
    ) -> None:
        self.pipe, self.prompts = pipe, checked_prompts(prompts)
        seeds = checked_seeds(seeds, len(self.prompts))
        SamplingOptions(
            num_inference_steps, guidance_scale, negative_prompt, height, width, eta, guidance_rescale=guidance_rescale
        )
        check_pipeline(pipe)
        check_steps(pipe.scheduler, num_inference_steps)
        self.guidance_scale = default_guidance_scale(pipe) if guidance_scale is None else guidance_scale
        self.guidance_rescale, self.is_guided = guidance_rescale, self.guidance_scale > 1
        self.device, self.dtype = pipe._execution_device, pipe.unet.dtype
        self._step_count, self._eta = num_inference_steps, eta
        factor = pipe.vae_scale_factor
        size = pipe.unet.config.sample_size
        latent_height, latent_width = (size, size) if isinstance(size, int) else size
        self.height, self.width = height or latent_height * factor, width or latent_width * factor
        if self.height % factor or self.width % factor:
            raise SettingError(
                f"expected height and width in multiples of {factor}, got {self.height} and {self.width}"
            )
        with torch.no_grad():
            self.prompt_embeds, self.conditions = encode_prompts(
                pipe,
                self.prompts,
                negative_prompt=negative_prompt,
                is_guided=self.is_guided,
                size=(self.height, self.width),
                device=self.device,
            )
        self._restart(seeds)

    def _restart(self, seeds: Sequence[int]) -> None:
        """Draw the noise of seeds and return to the first step."""
        pipe = self.pipe
        self.seeds, self.index = [int(seed) for seed in seeds], 0
        self.scheduler = copy.deepcopy(pipe.scheduler)
        self.scheduler.set_timesteps(self._step_count, device=self.device)
        self.timesteps: Tensor = self.scheduler.timesteps
        # Ancestral schedulers go on drawing from the generators of the noise, as in the pipeline.
        self.generators = [torch.Generator().manual_seed(seed) for seed in self.seeds]
        with torch.no_grad():
            channels, dtype = pipe.unet.config.in_channels, self.prompt_embeds.dtype
            # The pipeline scales noise by its scheduler, whose last run may have had another number of steps.
            view = copy.copy(pipe)
            vars(view)["scheduler"] = self.scheduler
            shape = len(self.prompts), channels, self.height, self.width
            self.latents: Tensor = view.prepare_latents(*shape, dtype, self.device, self.generators)
        # The pipeline passes what its scheduler's `step` takes.
        self._step_options = pipe.prepare_extra_step_kwargs(self.generators, self._eta)

    def with_seeds(self, seeds: Sequence[int]) -> Self:
        """Return a sampler of the same encoded prompts, before its first step from the noise of other seeds.

        Args:
            seeds: one seed per prompt.
        """
        other = copy.copy(self)
        other._restart(seeds)
        return other

    @property
    def is_finished(self) -> bool:
        """Whether every step has been taken."""
        return self.index >= len(self.timesteps)

    @property
    def timestep(self) -> Tensor:
        """The timestep of the next step."""
        return self.timesteps[self.index]

    def scaled_latents(self, samples: Sequence[int] | None = None) -> Tensor:
        """Return the scheduler's scaled latents (M, C, h, w) of the next step.

        Args:
            samples: indices of the M samples, ascending; all if None.
        """
        if hasattr(self.scheduler, "_init_step_index") and self.scheduler.step_index is None:
            self.scheduler._init_step_index(self.timestep)
        latents = self.latents if samples is None or len(samples) == len(self.prompts) else self.latents[samples]
        return self.scheduler.scale_model_input(latents, self.timestep)  # type: ignore[no-any-return]

    def predict(self, samples: Sequence[int] | None = None) -> Tensor:
        """Call the U-Net at the next step and return its guided output (M, C, h, w).

        Args:
            samples: indices of the M samples, ascending; all if None.
        """
        return self.predict_at(self.index, self.scaled_latents(samples), samples)

    def predict_at(self, index: int, scaled: Tensor, samples: Sequence[int] | None = None) -> Tensor:
        """Call the U-Net on any latents as if they were those of a step, and return its guided output (M, C, h, w).

        Args:
            index: index of the step.
            scaled: the scheduler's scaled latents, (M, C, h, w).
            samples: indices of the M samples, ascending; all if None.
        """
        if not self.is_guided:
            return self._call_unet((0,), scaled, index, samples)
        unconditional, conditional = self._call_unet((0, 1), scaled, index, samples).chunk(2)
        return self.apply_guidance(unconditional, conditional)

    def predict_half(self, conditional: bool, samples: Sequence[int] | None = None) -> Tensor:
        """Call the U-Net on one half of the guided batch, (M, C, h, w).

        Args:
            conditional: the half with prompts, or else the one without.
            samples: indices of the M samples, ascending; all if None.
        """
        return self._call_unet((1,) if conditional else (0,), self.scaled_latents(samples), self.index, samples)

    def apply_guidance(self, unconditional: Tensor, conditional: Tensor) -> Tensor:
        """Return the guided output of the two halves, (M, C, h, w).

        Args:
            unconditional: output without prompts, (M, C, h, w).
            conditional: output with prompts, (M, C, h, w).
        """
        return guide(unconditional, conditional, self.guidance_scale, self.guidance_rescale)

    def _call_unet(
        self, halves: tuple[int, ...], latents: Tensor, index: int, samples: Sequence[int] | None
    ) -> Tensor:
        count = len(self.prompts)
        rows: slice | list[int] = slice(halves[0] * count, (halves[-1] + 1) * count)
        if len(latents) < count and samples is not None:
            rows = [half * count + i for half in halves for i in samples]
        conditions = {
            name: {key: value[rows] for key, value in values.items()} for name, values in self.conditions.items()
        }
        per_half = range(count) if samples is None or len(latents) == count else samples
        names = (UNCONDITIONAL, CONDITIONAL) if self.is_guided else (CONDITIONAL,)
        layout = BatchLayout(
            tuple(names[half] for half in halves for _ in per_half),
            tuple(i for _ in halves for i in per_half),
            tuple(i for _ in halves for i in per_half),
            count,
        )
        with batch_layout(layout):
            return self.pipe.unet(  # type: ignore[no-any-return]
                torch.cat([latents] * len(halves)),
                self.timesteps[index],
                encoder_hidden_states=self.prompt_embeds[rows],
                return_dict=False,
                **conditions,
            )[0]

    def scales(self, index: int | None = None) -> tuple[float, float]:
        """Return alpha_t and sigma_t of a step.

        Args:
            index: index of the step; the next one if None.
        """
        index = self.index if index is None else index
        sigmas = getattr(self.scheduler, "sigmas", None)
        if sigmas is not None and len(sigmas) >= len(self.timesteps):
            sigma = float(sigmas[index])
            alpha = (1 + sigma**2) ** -0.5
            return alpha, sigma * alpha
        # A step may lie between two training timesteps, or past the last.
        t = min(max(round(float(self.timesteps[index])), 0), len(self.scheduler.alphas_cumprod) - 1)
        product = float(self.scheduler.alphas_cumprod[t])
        return product**0.5, (1 - product) ** 0.5

    def pred_x0(self, output: Tensor, samples: Sequence[int] | None = None) -> Tensor:
        """Return the predicted clean latents (M, C, h, w) at the next step.

        Args:
            output: output of `predict` for the same samples, (M, C, h, w).
            samples: indices of the M samples, ascending; all if None.
        """
        return self.pred_x0_at(self.index, self.scaled_latents(samples), output)

    def pred_x0_at(self, index: int, scaled: Tensor, output: Tensor) -> Tensor:
        """Return the predicted clean latents (M, C, h, w) at any step, as the scheduler's step uses them.

        Args:
            index: index of the step.
            scaled: the scheduler's scaled latents, (M, C, h, w).
            output: output of `predict_at` for that step and these latents, (M, C, h, w).
        """
        return clean_latents(self.scheduler, scaled, output, *self.scales(index))

    def advance(self, output: Tensor, *, gradient: bool = False) -> None:
        """Take the next step.

        Args:
            output: output of `predict`, (B, C, h, w).
            gradient: let gradients flow through the step; the output is detached if false.
        """
        with torch.set_grad_enabled(gradient):
            model_output = output if gradient else output.detach()
            options = {**self._step_options, "return_dict": False}
            self.latents = self.scheduler.step(model_output, self.timestep, self.latents, **options)[0]
        self.index += 1

    @torch.no_grad()
    def finish(self) -> Tensor:
        """Take the remaining steps without gradients and return the images (B, 3, H, W) in [0, 1], on the CPU."""
        while not self.is_finished:
            self.advance(self.predict())
        return self.final_images()

    def final_images(self) -> Tensor:
        """Return the images (B, 3, H, W) of the last latents as the pipeline makes them, in [0, 1], on the CPU."""
        return final_images(self.pipe, self.latents, self.generators, self.prompt_embeds.dtype)

    def decode(self, latents: Tensor, decoder: Any = None) -> Tensor:
        """Decode clean latents to images (M, 3, H, W) in [0, 1]; gradients flow.

        Args:
            latents: latents as the U-Net sees them, (M, C, h, w).
            decoder: another decoder of the same latents, such as `AutoencoderTiny`; the pipeline's own if None.
        """
        vae = self.pipe.vae if decoder is None else decoder
        # Like the pipeline, which casts latents for an upcast decoder before it scales them.
        latents = latents.to(torch.promote_types(latents.dtype, vae.dtype))
        z = unscale_latents(vae, latents, statistics=uses_statistics(self.pipe))
        with torch.autocast(z.device.type, enabled=False):  # in the decoder's own precision, as the pipeline does
            images = vae.decode(z.to(vae.dtype), return_dict=False)[0]
        return (images.float() / 2 + 0.5).clamp(0, 1)  # type: ignore[no-any-return]

    def preview(self, latents: Tensor, size: int | None, decoder: Any = None) -> Tensor:
        """Decode clean latents that are averaged down, to images of at least and about `size` pixels per side.

        Args:
            latents: latents as the U-Net sees them, (M, C, h, w).
            size: pixels of the shorter side; None decodes the latents as they are.
            decoder: another decoder of the same latents; the pipeline's own if None.
        """
        factor = 1 if size is None else min(self.height, self.width) // size
        return self.decode(latents if factor < 2 else F.avg_pool2d(latents, factor), decoder)
