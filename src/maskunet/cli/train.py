"""`maskunet train`: from flags to a run. The settings' flags and their help are read from `TrainConfig` itself."""

from __future__ import annotations

import inspect
import os
import re
import tempfile
import time
import typing
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import DataError
from ..training.config import TrainConfig


def _help(config: type) -> dict[str, str]:
    """Return the help of each setting, from the Args of the class's docstring."""
    found: dict[str, str] = {}
    lines = inspect.cleandoc(config.__doc__ or "").splitlines()
    names: list[str] = []
    for line in lines:
        if match := re.match(r" {4}(\w[\w, ]*): (.*)", line):
            names = [n.strip() for n in match.group(1).split(",")]
            found |= dict.fromkeys(names, match.group(2))
        elif line.startswith(" " * 8):
            found |= {n: f"{found[n]} {line.strip()}" for n in names}
    return found


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command a flag for every setting of `TrainConfig`; it receives the config as `config`."""
    hints, texts = typing.get_type_hints(TrainConfig), _help(TrainConfig)
    signature = inspect.signature(command, eval_str=True)
    own = [p for p in signature.parameters.values() if p.name != "config"]
    extra = []
    for field in fields(TrainConfig):
        kind, default = hints[field.name], field.default
        if typing.get_origin(kind) is tuple:
            kind, default = list[str], []
        names = [f"--{field.name}"] + ([f"--no_{field.name}"] if kind is bool else [])
        flag = typer.Option("/".join(names), help=texts[field.name])
        extra.append(
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, flag]
            )
        )

    def run(**values: Any) -> None:
        given = {f.name: values.pop(f.name) for f in fields(TrainConfig)}
        given["validation_prompts"] = tuple(given["validation_prompts"])
        if given["resume_from_checkpoint"] == "none":
            given["resume_from_checkpoint"] = None
        command(config=TrainConfig(**given), **values)

    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + extra
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    run.__doc__, run.__name__ = command.__doc__, command.__name__
    return run


def _data(pipe: Any, dataset: str, options: dict[str, Any], config: TrainConfig) -> tuple[Any, Any]:
    """Return the latents to train on and those held out."""
    from ..data import encode_images, open_images
    from ..zoo.dataset import HELD_OUT_SEED, POOL, TRAIN_SEED, WORLDS, encode_scenes, scenes_of

    limit = options["max_train_samples"]
    if dataset in WORLDS:
        scenes, style = scenes_of(dataset, limit or POOL, TRAIN_SEED)
        held_out, _ = scenes_of(dataset, max(1, config.validation_samples), HELD_OUT_SEED)
        return encode_scenes(pipe, scenes, style, progress=True), encode_scenes(pipe, held_out, style)
    images = open_images(
        dataset,
        image_column=options["image_column"],
        caption_column=options["caption_column"],
        split=options["split"],
        streaming=options["streaming"],
    )
    resolution = options["resolution"] or pipe.unet.config.sample_size * pipe.vae_scale_factor
    data = encode_images(
        pipe,
        images,
        resolution=resolution,
        center_crop=options["center_crop"],
        random_flip=options["random_flip"],
        max_samples=limit,
        cache_dir=options["cache_dir"],
        seed=config.seed,
    )
    # The last tenth at most is held out, in the order of the file.
    held = min(config.validation_samples, len(data) // 10)
    return (data, None) if not held else data.split(len(data) - held)


def _reward(names: list[str] | None, pipe: Any) -> Any:
    """Return the reward of these names on the pipeline's device, or None."""
    if not names:
        return None
    from ..rewards import parse_reward

    return parse_reward(names).to(pipe.unet.device)


def _dry_run(pipe: Any, method: Any, data: Any, config: TrainConfig, reward: Any) -> None:
    """Take three steps in a folder that is thrown away, and say what the run would cost."""
    import resource

    import torch

    from ..training import train

    short = replace(
        config, max_train_steps=3, validation_samples=0, validation_rewards=0, validation_prompts=(), report_to=None
    )
    with tempfile.TemporaryDirectory() as folder:
        if pipe.unet.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        train(
            pipe, method, data, replace(short, max_train_steps=1), Path(folder) / "warm", reward=reward, progress=False
        )
        start = time.monotonic()
        train(pipe, method, data, short, Path(folder) / "run", reward=reward, progress=False)
        seconds = (time.monotonic() - start) / 3
    if pipe.unet.device.type == "cuda":
        memory = f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB on the GPU"
    else:
        memory = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB of the process"
    hours = seconds * config.max_train_steps / 3600
    typer.echo(
        f"dry run: {len(data)} samples; {seconds:.2f} s a step, so {config.max_train_steps} steps take about "
        f"{hours:.2f} h; at most {memory}. Nothing was written."
    )


@with_settings
def train(
    config: TrainConfig,
    model: Annotated[
        str,
        typer.Option(
            "--model", "--pretrained_model_name_or_path", help="'shapes', a diffusers folder, a file or a hub id."
        ),
    ],
    dataset: Annotated[
        str,
        typer.Option(
            "--dataset",
            "--dataset_name",
            "--train_data_dir",
            help="'shapes', 'shapes-art', a folder with metadata.jsonl, parquet or arrow files, or a hub id.",
        ),
    ],
    output_dir: Annotated[Path, typer.Option("--output_dir", help="The run's folder.")] = Path("runs/train"),
    method: Annotated[str, typer.Option(help="mask, lora, full or mask+lora.")] = "mask",
    masker: Annotated[str, typer.Option(help="Generator of masks: low-rank, or the paper's: paper.")] = "low-rank",
    mask_rank: Annotated[int, typer.Option("--mask_rank", min=2, help="Rank of low-rank mask logits.")] = 16,
    targets: Annotated[
        str, typer.Option(help="Layers of masks and LoRA: a preset, suffixes with commas between, or a regex.")
    ] = "decoder-attention",
    initial_logit: Annotated[float, typer.Option("--initial_logit", help="Every mask logit at the start.")] = 1.0,
    tau: Annotated[float, typer.Option(help="Temperature of the relaxation.")] = 1.0,
    use_timestep: Annotated[bool, typer.Option("--use_timestep/--no_timestep", help="Masks see the timestep.")] = True,
    use_sample: Annotated[bool, typer.Option("--use_sample/--no_sample", help="Masks see the features.")] = True,
    rank: Annotated[int, typer.Option(min=1, help="Rank of LoRA.")] = 16,
    dropout: Annotated[float, typer.Option(help="Dropout of full fine-tuning.")] = 0.0,
    reward: Annotated[
        list[str] | None, typer.Option(help="Reward of objective reward: NAME or NAME:WEIGHT; may be repeated.")
    ] = None,
    image_column: Annotated[str, typer.Option("--image_column", help="Column of the pictures.")] = "image",
    caption_column: Annotated[str, typer.Option("--caption_column", help="Column of the captions.")] = "text",
    split: Annotated[str, typer.Option(help="Split of a hub data set.")] = "train",
    streaming: Annotated[
        bool, typer.Option("--streaming", help="Read rows as they come, without a download.")
    ] = False,
    resolution: Annotated[int | None, typer.Option(help="Pixels a side; the model's own by default.")] = None,
    center_crop: Annotated[
        bool, typer.Option("--center_crop/--random_crop", help="Crop the centre, or a random place.")
    ] = True,
    random_flip: Annotated[bool, typer.Option("--random_flip", help="Flip pictures at random.")] = False,
    max_train_samples: Annotated[
        int | None, typer.Option("--max_train_samples", min=1, help="Use at most so many samples.")
    ] = None,
    cache_dir: Annotated[Path | None, typer.Option("--cache_dir", help="Folder to keep encoded pictures in.")] = None,
    num_train_epochs: Annotated[
        int | None, typer.Option("--num_train_epochs", min=1, help="Passes over the data, instead of max_train_steps.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Dtype of the frozen weights; float32 by default.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps; the first accelerator by default.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "--dry_run", help="Take three steps, say what a run costs, write nothing.")
    ] = False,
    hub_model_id: Annotated[
        str | None, typer.Option("--hub_model_id", help="Push the masker to this repository at the end.")
    ] = None,
) -> None:
    """Train masks (or a LoRA, or all weights) on pictures with captions; the same command again resumes."""
    import torch

    from .. import pipelines
    from ..maskers import LowRankMaskerConfig, MaskGeneratorConfig, TrainableConfig
    from ..training import build_method
    from ..training import train as run_training

    if masker not in ("low-rank", "paper"):
        raise DataError(f"expected masker low-rank or paper, got {masker!r}")
    if hub_model_id and "mask" not in method:
        raise DataError(f"expected method mask or mask+lora with --hub_model_id, got {method!r}")
    where = pipelines.choose_device(device)
    local = os.environ.get("LOCAL_RANK")
    if local is not None and where.type == "cuda" and where.index is None:
        where = torch.device("cuda", int(local))
    kind = pipelines.choose_dtype(dtype or "float32", where)
    pipelines.silence_loading()
    pipe = pipelines.load_pipeline(model, dtype=kind, device=where)
    names: Any = tuple(t.strip() for t in targets.split(",")) if "," in targets else targets
    conditions = {"use_timestep": use_timestep, "use_sample": use_sample}
    mask: TrainableConfig = MaskGeneratorConfig(names, initial_logit, tau, **conditions)
    if masker == "low-rank":
        mask = LowRankMaskerConfig(names, initial_logit, tau, mask_rank, **conditions)
    density = config.target_density is not None
    chosen = build_method(
        method, pipe, mask, gumbel=config.gumbel, density=density, rank=rank, dropout=dropout, seed=config.seed
    )
    options = {
        "image_column": image_column,
        "caption_column": caption_column,
        "split": split,
        "streaming": streaming,
        "resolution": resolution,
        "center_crop": center_crop,
        "random_flip": random_flip,
        "max_train_samples": max_train_samples,
        "cache_dir": cache_dir,
    }
    data, held_out = _data(pipe, dataset, options, config)
    if num_train_epochs is not None:
        world = int(os.environ.get("WORLD_SIZE", "1"))
        step = config.train_batch_size * config.gradient_accumulation_steps * world
        config = replace(config, max_train_steps=-(-num_train_epochs * len(data) // step))
    judged = _reward(reward, pipe)
    if dry_run:
        _dry_run(pipe, chosen, data, config, judged)
        return
    run = run_training(pipe, chosen, data, config, output_dir, validation=held_out, reward=judged)
    if os.environ.get("RANK", "0") != "0":
        return
    last: dict[str, Any] = next((e for e in reversed(run.stats) if "gain" in e), {})
    if last:
        typer.echo(f"validation gain over the base {last['gain']:.2e} +- {last['gain_ci95']:.2e}")
    if "reward_gain" in last:
        typer.echo(f"reward gain on held-out captions {last['reward_gain']:.4f} +- {last['reward_gain_ci95']:.4f}")
    folder = {"mask": "masker", "mask+lora": "masker and lora", "lora": "lora", "full": "unet"}[method]
    typer.echo(f"{folder} in {output_dir}")
    if hub_model_id:
        run.masker.push_to_hub(hub_model_id, **run.card)
