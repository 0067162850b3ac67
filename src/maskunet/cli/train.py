"""`maskunet train`: from flags to a run. The settings' flags are the fields of `TrainConfig`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import DataError, SettingError
from ..settings import MAX_PIXELS
from ..training.config import TrainConfig
from ..zoo import defaults as bundled
from .checks import check_output, finite
from .config_flags import ConfigFlags, checked, shown, with_flags
from .defaults import GUIDANCE_SCALE, is_bundled, masker_defaults
from .loading import local_device, open_reward, reward_sources
from .options import Device, option

_FOLDERS = {"mask": "masker", "mask+lora": "masker and lora", "lora": "lora", "full": "unet"}
_MASKER = masker_defaults()


def _default(name: str) -> str:
    default = GUIDANCE_SCALE if name.endswith("guidance_scale") else getattr(TrainConfig(), name)
    base, with_shapes = shown(default), shown(bundled.TRAIN.get(name, default))
    return base if with_shapes == base else f"{base}; {with_shapes} with shapes"


def _masker(name: str) -> str:
    return shown(_MASKER[name])


FLAGS = ConfigFlags(
    TrainConfig,
    _default,
    heading="Settings, with the defaults of TrainConfig",
    names={"train_batch_size": ["--train-batch-size", "--batch-size"]},
)
_METHOD: dict[str, Any] = {"rich_help_panel": "Method"}
_MASKS: dict[str, Any] = {"rich_help_panel": "Masker, with the defaults of LowRankMaskerConfig"}
_DATA: dict[str, Any] = {"rich_help_panel": "Data"}


@with_flags(FLAGS)
def train(
    settings: dict[str, Any],
    model: Annotated[str, typer.Option(help="Model: 'shapes', a diffusers folder, a .safetensors file or a hub id.")],
    dataset: Annotated[
        str,
        typer.Option(
            help="'shapes', 'shapes-art', a folder of images with captions, parquet or arrow files, or a hub id.",
            **_DATA,
        ),
    ],
    output: Annotated[Path, option(text="Folder of the run.", default="runs/train")] = Path("runs/train"),
    method: Annotated[str, option(text="mask, lora, full or mask+lora.", default="mask", **_METHOD)] = "mask",
    masker_kind: Annotated[
        str, option(text="low-rank, or the paper's generator: paper.", default="low-rank", **_METHOD)
    ] = "low-rank",
    targets: Annotated[
        str | None,
        option(
            text="Layers of masks and LoRA: a preset, suffixes with commas, or a regular expression.",
            default=_masker("targets"),
            **_MASKS,
        ),
    ] = None,
    initial_logit: Annotated[
        float | None, option(text="Every mask logit at the start.", default=_masker("initial_logit"), **_MASKS)
    ] = None,
    tau: Annotated[
        float | None, option(text="Temperature of the relaxation.", default=_masker("tau"), **_MASKS)
    ] = None,
    masker_rank: Annotated[
        int | None, option(text="Rank of the low-rank masker's logits.", default=_masker("rank"), **_MASKS)
    ] = None,
    hidden: Annotated[
        int | None, option(text="Width of the masker's hidden layer.", default=_masker("hidden"), **_MASKS)
    ] = None,
    use_timestep: Annotated[
        bool | None,
        option(
            "--use-timestep/--no-timestep",
            text="Masks see the timestep; with neither, they can be merged.",
            default=_masker("use_timestep"),
            **_MASKS,
        ),
    ] = None,
    use_sample: Annotated[
        bool | None,
        option("--use-sample/--no-sample", text="Masks see the features.", default=_masker("use_sample"), **_MASKS),
    ] = None,
    rank: Annotated[int, option(text="Rank of LoRA.", default=16, min=1, max=65536, **_METHOD)] = 16,
    dropout: Annotated[
        float, option(text="Dropout of full fine-tuning.", default=0, min=0, callback=finite, **_METHOD)
    ] = 0.0,
    reward: Annotated[
        list[str] | None,
        option(
            text="Reward of --objective reward: NAME or NAME:WEIGHT; may be repeated.",
            default=f"{bundled.REWARD} with shapes, else required",
            **_METHOD,
        ),
    ] = None,
    image_column: Annotated[str, option(text="Column of the images.", default="image", **_DATA)] = "image",
    caption_column: Annotated[str, option(text="Column of the captions.", default="text", **_DATA)] = "text",
    split: Annotated[str, option(text="Split of a hub data set.", default="train", **_DATA)] = "train",
    streaming: Annotated[
        bool, option("--streaming", text="Read rows as they come, without a download.", default="off", **_DATA)
    ] = False,
    resolution: Annotated[
        int | None, option(text="Pixels per side.", default="the model's own", min=8, max=MAX_PIXELS, **_DATA)
    ] = None,
    center_crop: Annotated[
        bool,
        option("--center-crop/--random-crop", text="Crop the centre, or at random.", default="center-crop", **_DATA),
    ] = True,
    random_flip: Annotated[
        bool, option("--random-flip", text="Flip images at random.", default="off", **_DATA)
    ] = False,
    aspect_ratio_buckets: Annotated[
        bool,
        option(
            "--aspect-ratio-buckets",
            text="Crop images to sizes of nearly one area, by their aspect ratio.",
            default="off, a square",
            **_DATA,
        ),
    ] = False,
    max_train_samples: Annotated[
        int | None, option(text="Use at most N samples.", default="all", min=1, **_DATA)
    ] = None,
    cache_dir: Annotated[
        Path | None, option(text="Folder for encoded images; a stopped encoding goes on.", default="none", **_DATA)
    ] = None,
    num_train_epochs: Annotated[
        int | None, option(text="Passes over the data, instead of --max-train-steps.", default="none", min=1)
    ] = None,
    dtype: Annotated[
        str | None, option(text="float32, float16 or bfloat16, of the frozen weights.", default="float32")
    ] = None,
    device: Device = None,
    dry_run: Annotated[
        bool, option("--dry-run", text="Take three steps, print what a run costs, write nothing.", default="off")
    ] = False,
    hub_model_id: Annotated[
        str | None, option(text="Push the masker to this repository at the end.", default="none")
    ] = None,
) -> None:
    """Train masks, a LoRA or all weights on images with captions. The same command again resumes.

    Underscores equal dashes, and diffusers' spellings are understood: --pretrained_model_name_or_path, --dataset_name,
    --train_data_dir, --output_dir.
    """
    config = TrainConfig(**(bundled.TRAIN if is_bundled(model) else {}) | settings)
    if method not in _FOLDERS:
        raise SettingError(f"expected --method to be one of {', '.join(_FOLDERS)}, got {method!r}")
    if hub_model_id and "mask" not in method:
        raise SettingError(f"expected method mask or mask+lora with --hub-model-id, got {method!r}")
    if hub_model_id and hub_model_id.count("/") != 1:
        raise SettingError(f"expected --hub-model-id to be a repository like user/name, got {hub_model_id!r}")
    if not dropout < 1:
        raise SettingError(f"expected --dropout to be in [0, 1), got {dropout}")
    mask = _masker_config(
        masker_kind,
        targets=targets,
        initial_logit=initial_logit,
        tau=tau,
        rank=masker_rank,
        hidden=hidden,
        use_timestep=use_timestep,
        use_sample=use_sample,
    )
    check_output(output)
    if cache_dir is not None:
        check_output(cache_dir)

    from .. import pipelines
    from ..distributed import process_rank
    from ..sampling.supported_pipelines import check_input_channels
    from ..training import build_method, open_dataset
    from ..training import train as run_training
    from ..training.accelerator import resolve_precision
    from ..training.arguments import check_scheduler
    from .dry_run import dry_run_training

    _check_run(config, output)
    torch_device = local_device(device)
    torch_dtype = pipelines.choose_dtype(dtype or "float32", torch_device)
    loaded_reward = _reward(reward, model, config)
    pipelines.silence_loading()
    pipe = pipelines.load_pipeline(model, dtype=torch_dtype, device=torch_device)
    if loaded_reward is not None:
        loaded_reward = loaded_reward.to(pipe.unet.device)
    has_density = config.target_density is not None
    training_method = build_method(
        method,
        pipe,
        mask,
        gumbel=config.gumbel,
        collect_density=has_density,
        rank=rank,
        dropout=dropout,
        seed=config.seed,
    )
    options: dict[str, Any] = {
        "image_column": image_column,
        "caption_column": caption_column,
        "split": split,
        "streaming": streaming,
        "resolution": resolution,
        "center_crop": center_crop,
        "random_flip": random_flip,
        "aspect_ratio_buckets": aspect_ratio_buckets,
        "max_samples": max_train_samples,
        "cache_dir": cache_dir,
    }
    check_input_channels(pipe)
    resolve_precision(pipe, config)  # refused before images are encoded
    check_scheduler(pipe, config)
    data, held_out = open_dataset(pipe, dataset, config, **options)
    process, processes = process_rank()
    if num_train_epochs is not None:
        samples_per_step = config.train_batch_size * config.gradient_accumulation_steps * processes
        config = replace(config, max_train_steps=-(-num_train_epochs * len(data) // samples_per_step))
    if dry_run:
        dry_run_training(pipe, training_method, data, config, loaded_reward)
        return
    run = run_training(pipe, training_method, data, config, output, validation=held_out, reward=loaded_reward)
    if process != 0:
        return
    last: dict[str, Any] = next((entry for entry in reversed(run.stats) if "gain" in entry), {})
    if last:
        interval = f" +- {last['gain_ci95']:.2e}" if "gain_ci95" in last else ""
        typer.echo(f"validation gain over the base {last['gain']:.2e}{interval}")
    if "reward_gain" in last:
        interval = f" +- {last['reward_gain_ci95']:.4f}" if "reward_gain_ci95" in last else ""
        typer.echo(f"reward gain on held-out captions {last['reward_gain']:.4f}{interval}")
    typer.echo(f"{_FOLDERS[method]} in {output}")
    if hub_model_id:
        run.masker.push_to_hub(hub_model_id, **run.card)


def _check_run(config: TrainConfig, output: Path) -> None:
    """Refuse an unknown tracker or checkpoint before images are encoded.

    Raises:
        DataError: a checkpoint that is not there.
        SettingError: no tracker has that name.
    """
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS
    from accelerate.utils import LoggerType

    trackers = sorted({str(kind) for kind in LoggerType} | {str(kind) for kind in LOGGER_TYPE_TO_CLASS})
    if config.report_to not in (None, *trackers):
        raise SettingError(f"expected --report-to to be one of {', '.join(trackers)}, got {config.report_to!r}")
    checkpoint = config.resume_from_checkpoint
    if checkpoint not in (None, "latest") and not (output / str(checkpoint)).is_dir():
        raise DataError(f"expected --resume-from-checkpoint to be latest or a folder in {output}, got {checkpoint!r}")


def _masker_config(kind: str, **values: Any) -> Any:
    """Return the settings of the masker; those that are None keep the config's default.

    Raises:
        SettingError: no such kind, or a setting that it cannot have.
    """
    from ..maskers import LowRankMaskerConfig, MaskGeneratorConfig

    configs: dict[str, Any] = {"low-rank": LowRankMaskerConfig, "paper": MaskGeneratorConfig}
    if kind not in configs:
        raise SettingError(f"expected --masker-kind to be one of {', '.join(configs)}, got {kind!r}")
    present = {name: value for name, value in values.items() if value is not None}
    if kind == "paper" and "rank" in present:
        raise SettingError("expected --masker-rank with --masker-kind low-rank, got it with paper")
    if "," in present.get("targets", ""):
        present["targets"] = tuple(target.strip() for target in present["targets"].split(","))
    for name, value in present.items():
        checked(configs[kind], name, value, "--masker-rank" if name == "rank" else f"--{name.replace('_', '-')}")
    return configs[kind](**present)


def _reward(sources: list[str] | None, model: str, config: TrainConfig) -> Any:
    """Return the reward of objective "reward", or None.

    Raises:
        SettingError: reward and objective do not fit.
        RewardError: an unknown reward.
    """
    if config.objective != "reward":
        if sources:
            raise SettingError(f"expected --objective reward with --reward, got {config.objective}")
        return None
    return open_reward(reward_sources(sources, model))
