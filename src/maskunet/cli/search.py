"""`maskunet search`: masks for the prompts of a call, found by reward. Its flags are the fields of `SearchConfig`."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import CheckpointError, DataError, UnscoredError, first_line
from ..files import read_object
from ..searching.config import PRESETS, SearchConfig
from ..zoo import defaults as bundled
from .checks import check_output, check_seeds, read_prompts
from .config_flags import ConfigFlags, shown, with_flags
from .defaults import GUIDANCE_SCALE
from .defaults import guidance_scale as guidance_of
from .loading import open_pipeline, open_reward, reward_sources
from .options import (
    Device,
    Dtype,
    MaskerSource,
    Model,
    Preset,
    Prompts,
    PromptsFile,
    Rewards,
    Scheduler,
    batch_size,
    option,
    output,
)


def _default(name: str) -> str:
    """Return the default of a setting: that of the preset "default", and other presets' where they differ."""
    if name == "guidance_scale":
        return f"{GUIDANCE_SCALE:g}; {bundled.GUIDANCE_SCALE:g} with shapes"
    base = shown(getattr(SearchConfig(), name))
    others: dict[str, list[str]] = {}
    for preset in PRESETS:
        value = shown(getattr(SearchConfig.preset(preset), name))
        if value != base:
            others.setdefault(value, []).append(preset)
    return "; ".join([base, *(f"{value} with preset {' or '.join(names)}" for value, names in others.items())])


FLAGS = ConfigFlags(
    SearchConfig,
    _default,
    heading="Settings of the search, with the defaults of the preset 'default' of SearchConfig",
    names={"num_inference_steps": ["--steps"], "time_limit_s": ["--time-limit"]},
)


@with_flags(FLAGS)
def search(
    settings: dict[str, Any],
    prompt: Prompts = None,
    prompts_file: PromptsFile = None,
    reward: Rewards = None,
    model: Model = "shapes",
    masker: MaskerSource = None,
    output: Annotated[Path, output("Folder for images, masks and histories.", "found")] = Path("found"),
    preset: Preset = "default",
    preview_decoder: Annotated[
        str | None,
        option(text="Folder or hub id of an AutoencoderTiny that rewards are computed on.", default="the model's own"),
    ] = None,
    scheduler: Scheduler = None,
    batch_size: Annotated[int, batch_size(1, "Prompts per search.")] = 1,
    dtype: Dtype = None,
    device: Device = None,
) -> None:
    """Search masks for prompts by the gradient of a reward. The same command again makes only what is missing.

    Settings without a flag come from the preset.
    """
    prompts = read_prompts(prompt, prompts_file)
    sources = reward_sources(reward, model)
    guidance = guidance_of(model, settings.get("guidance_scale"))
    config = SearchConfig.preset(preset, **settings | {"guidance_scale": guidance})
    check_seeds(config.seed, len(prompts))
    check_output(output)
    jobs = [(output / f"{i:05d}.json", text, config.seed + i) for i, text in enumerate(prompts)]
    known = {"model": model, "masker": masker, "reward_sources": sources, "preview_decoder": preview_decoder}
    for job in jobs:
        _is_finished(*job, config, known)  # another search's output is refused before anything is loaded

    from ..evaluation.image_reader import warn_black
    from ..searching import search as run_search
    from .loading import local_device

    local_device(device)  # a wrong device before a reward is loaded
    loaded_reward = open_reward(sources)
    pipe = open_pipeline(model, masker, device, dtype, scheduler)
    loaded_reward = loaded_reward.to(pipe.unet.device, pipe.unet.dtype)
    decoder = _open_decoder(preview_decoder, pipe) if preview_decoder is not None else None
    record = known | {
        "scheduler": type(pipe.scheduler).__name__,
        "rewards": loaded_reward.name,
        "dtype": str(pipe.unet.dtype),
    }
    finished = [_is_finished(*job, config, record) for job in jobs]
    for start in range(0, len(prompts), batch_size):
        texts = prompts[start : start + batch_size]
        seeds = [config.seed + start + i for i in range(len(texts))]
        if all(finished[start : start + batch_size]):
            continue
        try:
            result = run_search(pipe, texts, loaded_reward, config, seeds=seeds, decoder=decoder)
        except UnscoredError as error:
            _save(error.result, output, start, record)
            raise
        _save(result, output, start, record)
        for i in range(len(texts)):
            typer.echo(f"{start + i:05d}  {_summary(result, i)}")
    typer.echo(f"{len(prompts)} images in {output}; their masks in {output / 'masks'}")
    warn_black(output, [path.with_suffix(".png") for path, _, _ in jobs])


def _save(result: Any, output: Path, first: int, record: dict[str, Any]) -> None:
    replace(result, settings={**result.settings, **record}).save(output, first=first, overwrite=True)


def _summary(result: Any, index: int) -> str:
    base = "" if result.base_rewards is None else f"{float(result.base_rewards[index]):.4f} -> "
    start_seed = result.start_seeds[index]
    noise = "" if start_seed == result.seeds[index] else f"  from noise {start_seed}"
    if float(result.rewards[index]) != float(result.search_rewards[index]):
        noise = f"  the seed's own image, better than the search's {float(result.search_rewards[index]):.4f}"
    return f"reward {base}{float(result.rewards[index]):.4f}  {result.prompts[index]}{noise}"


def _is_finished(path: Path, prompt: str, seed: int, config: SearchConfig, settings: dict[str, Any]) -> bool:
    """Return whether an earlier call with the same settings finished the image of a record; refuse another's record."""
    if not path.exists():
        return False
    record = read_object(path, "a search's record")
    # A record of an earlier version lacks settings that came later; it was made with their defaults.
    defaults = json.loads(json.dumps(asdict(SearchConfig())))
    saved = record.get("config")
    record["config"] = defaults | saved if isinstance(saved, dict) else saved
    expected = settings | {"prompt": prompt, "seed": seed, "config": json.loads(json.dumps(asdict(config)))}
    if differing := sorted(key for key, value in expected.items() if record.get(key) != value):
        raise DataError(
            f"expected {path.parent} to be empty or to hold this very search, {', '.join(differing)} differ in {path.name}; "
            "choose another --output"
        )
    masks = path.parent / "masks" / path.stem
    return record.get("reward") is not None and path.with_suffix(".png").is_file() and masks.is_dir()


def _open_decoder(source: str, pipe: Any) -> Any:
    from diffusers import AutoencoderTiny

    try:
        decoder = AutoencoderTiny.from_pretrained(source, dtype=pipe.vae.dtype).to(pipe.vae.device)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"expected --preview-decoder to be an AutoencoderTiny, could not read {source!r}: {first_line(error)}"
        ) from error
    if decoder.config.latent_channels != pipe.vae.config.latent_channels:
        raise CheckpointError(
            f"expected a preview decoder for {pipe.vae.config.latent_channels} latent channels, {source!r} is for "
            f"{decoder.config.latent_channels}"
        )
    return decoder
