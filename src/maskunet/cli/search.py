"""`maskunet search`: masks for given prompts, found at generation time by reward."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ..searching.config import SearchConfig
from .options import (
    Device,
    Dtype,
    MaskerPath,
    Model,
    Preset,
    Rewards,
    Seed,
    open_pipeline,
    open_rewards,
    read_prompts,
    reward_sources,
)


def search(
    prompt: Annotated[list[str] | None, typer.Option(help="Prompt; may be repeated.")] = None,
    prompts_file: Annotated[Path | None, typer.Option(help="Text file with a prompt a line.")] = None,
    reward: Rewards = None,
    model: Model = "shapes",
    masker: MaskerPath = None,
    output: Annotated[Path, typer.Option(help="Folder for pictures, masks and histories.")] = Path("found"),
    preset: Preset = "default",
    candidates: Annotated[
        int | None, typer.Option(min=1, help="Noises a prompt, of which coarse drafts choose one; the preset's.")
    ] = None,
    iterations: Annotated[int | None, typer.Option(min=0, help="Iterations a step; the preset's.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Rate on the mask logits; the preset's.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps; the preset's.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="Strength of guidance; the preset's.")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What to steer away from.")] = None,
    time_limit: Annotated[float | None, typer.Option(help="Stop optimising after so many seconds a batch.")] = None,
    target_reward: Annotated[float | None, typer.Option(help="Stop improving a step once this is reached.")] = None,
    preview_decoder: Annotated[
        str | None, typer.Option(help="Folder or hub id of an AutoencoderTiny that rewards are computed on.")
    ] = None,
    gradient_checkpointing: Annotated[bool, typer.Option(help="Trade time for memory.")] = False,
    scheduler: Annotated[str | None, typer.Option(help="ddim, euler, dpm-solver++, ...; the model's own.")] = None,
    seed: Seed = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts that are searched at once.")] = 1,
    dtype: Dtype = None,
    device: Device = None,
) -> None:
    """Find masks for prompts by the gradient of rewards; the same command again goes on where it was interrupted."""
    from ..errors import UnscoredError
    from ..files import make_folder
    from ..searching import search as run

    prompts = read_prompts(prompt, prompts_file)
    sources = reward_sources(reward, model)
    given: dict[str, Any] = {
        "candidates": candidates,
        "iterations": iterations,
        "learning_rate": learning_rate,
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "negative_prompt": negative_prompt,
        "time_limit_s": time_limit,
        "target_reward": target_reward,
        "gradient_checkpointing": gradient_checkpointing or None,
        "seed": seed,
    }
    if model == "shapes" and guidance_scale is None:
        given["guidance_scale"] = 4.0  # what the bundled model is made for
    config = SearchConfig.preset(preset or "default", **{k: v for k, v in given.items() if v is not None})
    make_folder(output)
    pipe = open_pipeline(model, masker, device, dtype, scheduler)
    judged = open_rewards(sources, pipe)
    decoder = _preview(preview_decoder, pipe) if preview_decoder else None
    settings = {
        "model": model,
        "masker": masker,
        "scheduler": type(pipe.scheduler).__name__,
        "rewards": judged.name,
        "reward_sources": sources,
        "preview_decoder": preview_decoder,
        "dtype": str(pipe.unet.dtype),
    }
    for start in range(0, len(prompts), batch_size):
        chunk = list(enumerate(prompts))[start : start + batch_size]
        if all(_finished(output, i, p, seed + i, config, settings) for i, p in chunk):
            continue
        texts, seeds = [p for _, p in chunk], [seed + i for i, _ in chunk]
        try:
            found = run(pipe, texts, judged, config, seeds=seeds, decoder=decoder)
        except UnscoredError as error:
            error.result.save(output, first=start, **settings)
            raise
        found.save(output, first=start, **settings)
        for (i, text), after in zip(chunk, found.rewards.tolist(), strict=True):
            before = found.base_rewards
            shown = "" if before is None else f"{float(before[i - start]):.4f} -> "
            start_seed = found.settings["start_seeds"][i - start]
            noise = "" if start_seed == seed + i else f"  from noise {start_seed}"
            typer.echo(f"{i:05d}  reward {shown}{after:.4f}  {text}{noise}")
    typer.echo(f"{len(prompts)} pictures in {output}; their masks in {output / 'masks'}")


def _finished(
    output: Path, index: int, prompt: str, seed: int, config: SearchConfig, settings: dict[str, Any]
) -> bool:
    """Whether an earlier call with the same settings finished this very picture."""
    path = output / f"{index:05d}.json"
    if not (path.is_file() and path.with_suffix(".png").is_file() and (output / "masks" / path.stem).is_dir()):
        return False
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    wanted = settings | {"prompt": prompt, "seed": seed, "config": json.loads(json.dumps(asdict(config)))}
    return record.get("reward") is not None and all(record.get(k) == v for k, v in wanted.items())


def _preview(source: str, pipe: Any) -> Any:
    from diffusers import AutoencoderTiny

    from ..errors import CheckpointError

    try:
        decoder = AutoencoderTiny.from_pretrained(source, dtype=pipe.vae.dtype).to(pipe.vae.device)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"expected an AutoencoderTiny as --preview-decoder, could not read {source!r}: {str(error).splitlines()[0]}"
        ) from error
    if decoder.config.latent_channels != pipe.vae.config.latent_channels:
        raise CheckpointError(
            f"expected a preview decoder for {pipe.vae.config.latent_channels} latent channels, {source!r} is for "
            f"{decoder.config.latent_channels}"
        )
    return decoder
