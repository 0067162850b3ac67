"""How to train. Names follow diffusers' example scripts."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import DataError


@dataclass(frozen=True)
class TrainConfig:
    """How to train. Names follow diffusers' example scripts.

    Args:
        max_train_steps: optimiser steps.
        train_batch_size: samples a step, process and accumulation.
        gradient_accumulation_steps: batches whose gradients make one step.
        gradient_checkpointing: compute activations of the U-Net again in the backward pass, for less memory.
        mixed_precision: "no", "fp16" or "bf16"; what trains stays in float32.
        learning_rate: peak rate of AdamW; the method's own if None.
        lr_scheduler: schedule of the rate, as diffusers' `get_scheduler` names it.
        lr_warmup_steps: steps of warm-up.
        adam_beta1, adam_beta2, adam_weight_decay, adam_epsilon: AdamW's.
        use_8bit_adam: keep the optimiser's state in 8 bits (bitsandbytes; a GPU, or a CPU in recent versions).
        max_grad_norm: gradients are clipped to this norm.
        use_ema: keep an exponential moving average of what trains, and save that.
        ema_decay: its decay.
        caption_dropout: share of captions replaced by the empty one, for classifier-free guidance.
        snr_gamma: gamma of min-SNR loss weights; None weighs all timesteps equally.
        noise_offset: scale of a noise that is constant over each channel.
        cache_prompt_embeds: encode every caption once, before training.
        gumbel: draw masks with Gumbel noise, as the paper does, or by the deterministic threshold.
        tau_end: temperature of the relaxation at the last step, reached in equal ratios; None keeps the masker's.
        target_density: density that the masks are drawn to; None leaves it to the loss.
        density_weight: weight of (mean P(keep) - target_density)^2 in the loss.
        objective: "diffusion", or "reward": climb a reward of the network's own samples, with the diffusion loss beside.
        diffusion_weight, reward_weight: weights of the two in the objective "reward"; at 0 the diffusion loss is not
            computed.
        reward_batch_size: samples of each batch that are drawn and rewarded.
        reward_num_inference_steps, reward_guidance_scale: how they are drawn, by the pipeline's own scheduler.
        refl_start: ReFL takes the reward at a random step past this share of the steps.
        draft_steps: K of DRaFT-K, gradients through the last K steps instead of ReFL; None for ReFL.
        validation_rewards: held-out captions whose finished pictures are rewarded at each comparison.
        validation_samples: pairs of sample and noise on which base and trained losses are compared; 0 for none.
        validation_steps: steps between comparisons, and between validation pictures.
        validation_prompts: prompts of pictures that are drawn then; none by default.
        validation_num_inference_steps, validation_guidance_scale: settings of those pictures.
        checkpointing_steps: steps between checkpoints.
        checkpoints_total_limit: how many checkpoints are kept; all if None.
        resume_from_checkpoint: "latest", a checkpoint's name, or None to refuse a folder that holds a run.
        logging_steps: steps between lines of `stats.jsonl`.
        report_to: a tracker of accelerate ("tensorboard", "wandb"), or None; TensorBoard's files go to `logs/`.
        seed: seed of the data's order, noise and masks.
    """

    max_train_steps: int = 1000
    train_batch_size: int = 64
    gradient_accumulation_steps: int = 1
    gradient_checkpointing: bool = False
    mixed_precision: str = "no"
    learning_rate: float | None = None
    lr_scheduler: str = "cosine"
    lr_warmup_steps: int = 50
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_weight_decay: float = 0.01
    adam_epsilon: float = 1e-8
    use_8bit_adam: bool = False
    max_grad_norm: float = 1.0
    use_ema: bool = False
    ema_decay: float = 0.999
    caption_dropout: float = 0.1
    snr_gamma: float | None = None
    noise_offset: float = 0.0
    cache_prompt_embeds: bool = False
    gumbel: bool = True
    tau_end: float | None = None
    target_density: float | None = None
    density_weight: float = 1.0
    objective: str = "diffusion"
    diffusion_weight: float = 1.0
    reward_weight: float = 0.01
    reward_batch_size: int = 8
    reward_num_inference_steps: int = 15
    reward_guidance_scale: float = 7.5
    refl_start: float = 0.5
    draft_steps: int | None = None
    validation_rewards: int = 32
    validation_samples: int = 1024
    validation_steps: int = 250
    validation_prompts: tuple[str, ...] = ()
    validation_num_inference_steps: int = 25
    validation_guidance_scale: float = 7.5
    checkpointing_steps: int = 250
    checkpoints_total_limit: int | None = None
    resume_from_checkpoint: str | None = "latest"
    logging_steps: int = 25
    report_to: str | None = None
    seed: int = 0

    def checked(self) -> TrainConfig:
        """Return the settings if they make sense.

        Raises:
            DataError: one is out of range.
        """
        least = {
            "max_train_steps": 1,
            "train_batch_size": 1,
            "gradient_accumulation_steps": 1,
            "validation_samples": 0,
            "validation_rewards": 0,
            "reward_batch_size": 1,
            "reward_num_inference_steps": 1,
            "diffusion_weight": 0,
            "reward_weight": 0,
            "validation_steps": 1,
            "checkpointing_steps": 1,
            "logging_steps": 1,
        }
        for name, low in least.items():
            if getattr(self, name) < low:
                raise DataError(f"expected {name} of at least {low}, got {getattr(self, name)}")
        for name in ("learning_rate", "tau_end", "snr_gamma", "max_grad_norm"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise DataError(f"expected {name} above 0, got {value}")
        for name in ("caption_dropout", "target_density", "ema_decay"):
            if (value := getattr(self, name)) is not None and not 0 <= value <= 1:
                raise DataError(f"expected {name} in [0, 1], got {value}")
        if self.objective not in ("diffusion", "reward"):
            raise DataError(f"expected objective 'diffusion' or 'reward', got {self.objective!r}")
        if not 0 <= self.refl_start < 1:
            raise DataError(f"expected refl_start in [0, 1), got {self.refl_start}")
        if self.draft_steps is not None and not 1 <= self.draft_steps <= self.reward_num_inference_steps:
            raise DataError(f"expected draft_steps from 1 to reward_num_inference_steps, got {self.draft_steps}")
        if self.mixed_precision not in ("no", "fp16", "bf16"):
            raise DataError(f"expected mixed_precision 'no', 'fp16' or 'bf16', got {self.mixed_precision!r}")
        if self.checkpoints_total_limit is not None and self.checkpoints_total_limit < 1:
            raise DataError(f"expected checkpoints_total_limit of at least 1, got {self.checkpoints_total_limit}")
        return self
