"""Settings of training. Names follow diffusers' example scripts."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import SettingError
from ..settings import MAX_GUIDANCE_SCALE, Settings, choice, flag, integer, number, text, texts

#: Final learning rate of the schedule "polynomial" in diffusers, which must lie below the peak.
POLYNOMIAL_END = 1e-7


@dataclass(frozen=True)
class TrainConfig(Settings):
    """Settings of training. Names follow diffusers' example scripts; defaults fit SD 1.5 at 512 pixels on a 16 GB card.

    Main:
        max_train_steps: optimiser steps.
        train_batch_size: samples per step, process and accumulation.
        gradient_accumulation_steps: batches whose gradients make one step.
        learning_rate: peak rate of AdamW; the method's own if None.
        mixed_precision: "no", "fp16", "bf16", or "auto": bf16 on a GPU that computes in it, fp16 on another GPU, none
            elsewhere. The trained parameters stay in float32.
        validation_samples: pairs of sample and noise on which base and trained losses are compared; 0 for none.
        validation_steps: steps between comparisons, and between validation images.
        seed: seed of the data's order, noise and masks.

    Fine-tuning, optimiser:
        gradient_checkpointing: recompute activations of the U-Net in the backward pass, for less memory.
        allow_tf32: let a GPU compute float32 matrix products in TF32 while it trains.
        lr_scheduler: schedule of the rate, as diffusers' `get_scheduler` names it.
        lr_warmup_steps: steps of warm-up.
        adam_beta1: decay of AdamW's first moment.
        adam_beta2: decay of AdamW's second moment.
        adam_weight_decay: AdamW's weight decay.
        adam_epsilon: AdamW's epsilon.
        use_8bit_adam: keep the optimiser's state in 8 bits (bitsandbytes; a GPU, or a CPU in recent versions).
        max_grad_norm: gradients are clipped to this norm.
        use_ema: keep an exponential moving average of the trained parameters, and save that.
        ema_decay: decay of that average.

    Fine-tuning, loss:
        caption_dropout: share of captions replaced by the empty one, for classifier-free guidance; none in objective
            "guidance", which leaves no call for it.
        snr_gamma: gamma of min-SNR loss weights; None weighs all timesteps equally.
        noise_offset: scale of a noise that is constant over each channel.
        cache_prompt_embeds: encode every caption once, before training.
        gumbel: draw masks with Gumbel noise, as the paper does, or take them by the deterministic threshold.
        tau_end: temperature of the relaxation at the last step, approached geometrically; None keeps the masker's.
        target_density: density that a penalty draws the masks to; None leaves it to the loss.
        density_weight: weight of (mean P(keep) - target_density)^2 in the loss.

    Fine-tuning, guidance:
        guidance_scale: scale of the guidance that objective "guidance" imitates; the model's default if None.
        guidance_rescale: how far that prediction is rescaled to the conditional one's deviation, in [0, 1].
        negative_prompt: prompt that it steers away from.

    Fine-tuning, reward:
        objective: "diffusion"; "guidance": imitate the base model's guided prediction; or "reward": raise a reward of the
            network's own samples, with the diffusion loss beside it.
        diffusion_weight: weight of the diffusion loss in the objective "reward"; at 0 it is not computed.
        reward_weight: weight of the reward in the objective "reward".
        reward_batch_size: samples of each batch that are generated and rewarded.
        reward_num_inference_steps: denoising steps of those samples, by the pipeline's own scheduler.
        reward_guidance_scale: strength of their classifier-free guidance; the model's default if None.
        refl_start: ReFL takes the reward at a random step after this share of the steps.
        draft_steps: K of DRaFT-K, gradients through the last K steps instead of ReFL; None for ReFL.
        validation_rewards: held-out captions whose finished images are rewarded at each comparison.

    Fine-tuning, run:
        validation_batch_size: samples per validation call; `train_batch_size` if None.
        validation_prompts: prompts of images that are generated at each comparison; none by default.
        validation_num_inference_steps: denoising steps of those images.
        validation_guidance_scale: strength of their classifier-free guidance; the model's default if None.
        checkpointing_steps: steps between checkpoints.
        checkpoints_total_limit: keep the last N checkpoints; all if None.
        resume_from_checkpoint: "latest", a checkpoint's name, or None to refuse a folder that holds a run.
        logging_steps: steps between lines of `stats.jsonl`.
        report_to: a tracker of accelerate ("tensorboard", "wandb"), or None; TensorBoard's files go to `logs/`.

    Raises:
        SettingError: a setting is out of range, or contradicts another.
    """

    max_train_steps: int = integer(1000, at_least=1)
    train_batch_size: int = integer(4, at_least=1)
    gradient_accumulation_steps: int = integer(4, at_least=1)
    gradient_checkpointing: bool = flag(False)
    mixed_precision: str = choice("auto", "no", "fp16", "bf16")
    allow_tf32: bool = flag(True)
    learning_rate: float | None = number(None, above=0, optional=True)
    # Not "piecewise_constant", which needs rules that no field here holds.
    lr_scheduler: str = choice(
        "cosine", "constant", "constant_with_warmup", "linear", "cosine_with_restarts", "polynomial"
    )
    lr_warmup_steps: int = integer(50, at_least=0)
    adam_beta1: float = number(0.9, at_least=0, below=1)
    adam_beta2: float = number(0.999, at_least=0, below=1)
    adam_weight_decay: float = number(0.01, at_least=0)
    adam_epsilon: float = number(1e-8, above=0)
    use_8bit_adam: bool = flag(False)
    max_grad_norm: float = number(1.0, above=0)
    use_ema: bool = flag(False)
    ema_decay: float = number(0.999, at_least=0, below=1)
    caption_dropout: float = number(0.1, at_least=0, at_most=1)
    snr_gamma: float | None = number(None, above=0, optional=True)
    noise_offset: float = number(0.0, at_least=0)
    cache_prompt_embeds: bool = flag(False)
    gumbel: bool = flag(True)
    tau_end: float | None = number(None, above=0, optional=True)
    target_density: float | None = number(None, at_least=0, at_most=1, optional=True)
    density_weight: float = number(1.0, at_least=0)
    objective: str = choice("diffusion", "guidance", "reward")
    guidance_scale: float | None = number(None, above=1, at_most=MAX_GUIDANCE_SCALE, optional=True)
    guidance_rescale: float = number(0.0, at_least=0, at_most=1)
    negative_prompt: str = text("")
    diffusion_weight: float = number(1.0, at_least=0)
    reward_weight: float = number(0.01, at_least=0)
    reward_batch_size: int = integer(1, at_least=1)
    reward_num_inference_steps: int = integer(15, at_least=1, at_most=1000)
    reward_guidance_scale: float | None = number(None, at_least=0, at_most=MAX_GUIDANCE_SCALE, optional=True)
    refl_start: float = number(0.5, at_least=0, below=1)
    draft_steps: int | None = integer(None, at_least=1, optional=True)
    validation_rewards: int = integer(32, at_least=0)
    validation_samples: int = integer(64, at_least=0)
    validation_batch_size: int | None = integer(None, at_least=1, optional=True)
    validation_steps: int = integer(250, at_least=1)
    validation_prompts: tuple[str, ...] = texts()
    validation_num_inference_steps: int = integer(25, at_least=1, at_most=1000)
    validation_guidance_scale: float | None = number(None, at_least=0, at_most=MAX_GUIDANCE_SCALE, optional=True)
    checkpointing_steps: int = integer(250, at_least=1)
    checkpoints_total_limit: int | None = integer(None, at_least=1, optional=True)
    resume_from_checkpoint: str | None = text("latest", optional=True)
    logging_steps: int = integer(25, at_least=1)
    report_to: str | None = text(None, optional=True)
    seed: int = integer(0, at_least=0, at_most=2**63 - 1)

    def check(self) -> None:
        """Refuse settings that contradict each other.

        Raises:
            SettingError: a DRaFT-K longer than its sampling, or a polynomial schedule that would rise.
        """
        if self.draft_steps is not None and self.draft_steps > self.reward_num_inference_steps:
            raise SettingError(
                f"expected draft_steps <= reward_num_inference_steps ({self.reward_num_inference_steps}), got "
                f"{self.draft_steps}"
            )
        rate = self.learning_rate
        if self.lr_scheduler == "polynomial" and rate is not None and rate <= POLYNOMIAL_END:
            raise SettingError(
                f"expected learning_rate > {POLYNOMIAL_END:g} with lr_scheduler 'polynomial', which ends there, got {rate:g}"
            )
