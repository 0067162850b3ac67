"""Load a text-to-image pipeline from a folder, a single file, a hub id, or a bundled name."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from .errors import CheckpointError, SettingError, first_line
from .model_files import ModelSource, choose_variant, fit_pipeline, put_unet, read_single_file
from .moving import outside_inference_mode
from .pretrained import bundled_path, is_hub_id, local_path

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
#: Schedulers by their name on the command line: class, and settings that override the model's config.
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "dpm-solver++": ("DPMSolverMultistepScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
}


def is_bundled(pipe: Any) -> bool:
    """Return whether a pipeline was loaded from the bundled model's folder.

    Args:
        pipe: a pipeline.
    """
    name = getattr(pipe, "name_or_path", None)
    return bool(name) and Path(str(name)).resolve() == bundled_path("shapes").resolve()


def silence_loading() -> None:
    """Switch off the progress bars and notes that diffusers and transformers print while they load."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Silence loading inside the context; afterwards bars and notes are shown as before."""
    import diffusers
    import huggingface_hub.utils as hub
    import transformers

    logs = [library.utils.logging for library in (diffusers, transformers)]
    former = [(log, log.get_verbosity(), log.is_progress_bar_enabled()) for log in logs]
    shows_downloads = not hub.are_progress_bars_disabled()
    silence_loading()
    try:
        yield
    finally:
        for log, verbosity, has_bars in former:
            log.set_verbosity(verbosity)
            if has_bars:
                log.enable_progress_bar()
        # transformers switches the hub's bars together with its own.
        (hub.enable_progress_bars if shows_downloads else hub.disable_progress_bars)()


def choose_device(name: str | None) -> torch.device:
    """Return the device to run on.

    Args:
        name: "cpu", "cuda", "cuda:1" or another device of PyTorch; the first accelerator, or else the CPU, if None.

    Raises:
        SettingError: this machine has no such device; none is substituted.
    """
    if name is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise SettingError(
            f"expected a device of this machine (cpu{', cuda' if torch.cuda.is_available() else ''}), got {name!r}: "
            f"{first_line(error)}"
        ) from error
    if device.type == "meta":
        raise SettingError("expected a device that computes, got 'meta'")
    return device


def choose_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """Return the dtype to run in.

    Args:
        name: a key of `DTYPES`; float16 on CUDA and float32 elsewhere if None.
        device: the device to run on.

    Raises:
        SettingError: an unknown dtype, or one that the device does not compute in.
    """
    if name is None:
        return torch.float16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise SettingError(f"expected a dtype among {', '.join(DTYPES)}, got {name!r}")
    if device.type == "cpu" and name == "float16":
        raise SettingError("expected a dtype that the CPU computes in, got float16; use float32 or bfloat16")
    if device.type == "cuda" and name == "bfloat16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise SettingError("expected a dtype that this GPU computes in, got bfloat16; use float16 or float32")
    return DTYPES[name]


@outside_inference_mode()
def load_pipeline(
    source: str | os.PathLike[str],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    scheduler: str | None = None,
    revision: str | None = None,
    variant: str | None = None,
    unet: str | os.PathLike[str] | None = None,
    config: str | os.PathLike[str] | None = None,
) -> Any:
    """Load a Stable Diffusion pipeline.

    Args:
        source: "shapes" (bundled), a folder in the diffusers format, a `.safetensors` file, or a hub id.
        dtype: dtype of its weights.
        device: device of its weights.
        scheduler: a key of `SCHEDULERS`; the checkpoint's own if None.
        revision: branch, tag or commit on the hub.
        variant: variant of the weights, such as "fp16"; the plain ones, or else the only one, if None.
        unet: a U-Net that replaces the pipeline's: its folder, a folder with a `unet/`, a `.safetensors` file or a hub id.
        config: for a file, a pipeline's folder or hub id with its configs and tokenizer; those of its kind on the hub if
            None.

    Raises:
        CheckpointError: the source is missing or not a readable pipeline.
        SettingError: an unknown scheduler, or an option that the source does not take.
    """
    if isinstance(source, ModelSource):
        options = {"revision": revision, "variant": variant, "unet": unet, "config": config} | source.options
        return load_pipeline(source.model, dtype=dtype, device=device, scheduler=scheduler, **options)
    if scheduler is not None and scheduler not in SCHEDULERS:
        raise SettingError(f"expected a scheduler among {', '.join(SCHEDULERS)}, got {scheduler!r}")
    text = os.fspath(source)
    path = os.fspath(bundled_path("shapes")) if text == "shapes" else text
    pipe = _read(path, dtype, revision, variant, None if config is None else os.fspath(config))
    if not hasattr(pipe, "unet"):
        raise CheckpointError(f"expected a pipeline with a U-Net in {text!r}, got {type(pipe).__name__}")
    if unet is not None:
        pipe = put_unet(pipe, os.fspath(unet))
    pipe = fit_pipeline(pipe).to(device)
    if scheduler is not None:
        import diffusers

        class_name, overrides = SCHEDULERS[scheduler]
        pipe.scheduler = getattr(diffusers, class_name).from_config(pipe.scheduler.config, **overrides)
    return pipe


def _read(text: str, dtype: torch.dtype, revision: str | None, variant: str | None, config: str | None) -> Any:
    import diffusers

    path = local_path(text)
    is_file, is_hub = path.is_file(), is_hub_id(text)
    _refuse_unread({"revision": revision}, is_hub, "a hub id", text)
    _refuse_unread({"config": config}, is_file, "a .safetensors file", text)
    _refuse_unread({"variant": variant}, not is_file, "a folder or a hub id", text)
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True}
    if is_file:
        if path.suffix != ".safetensors":
            raise CheckpointError(
                f"expected a folder or a .safetensors file, got {text!r}; pickled checkpoints are not read. Convert it "
                "with diffusers' convert_original_stable_diffusion_to_diffusers.py --to_safetensors."
            )
        kind = "file"
    elif path.is_dir():
        _check_folder(path, text)
        kind = "folder"
        names = [f"{file.parent.name}/{file.name}" for file in path.glob("*/*")]
        options |= {"local_files_only": True, "variant": choose_variant(names, variant, text)}
    elif is_hub:
        kind = "hub id"
        names = _hub_files(text, revision)
        options |= {"revision": revision, "variant": choose_variant(names, variant, text) if names else variant}
    else:
        raise CheckpointError(
            f"expected 'shapes', a pipeline's folder, a .safetensors file or a hub id like 'user/name', got {text!r}, "
            "which does not exist"
        )
    try:
        if is_file:
            return read_single_file(path, dtype=dtype, config=config)
        return diffusers.DiffusionPipeline.from_pretrained(text if is_hub else str(path), **options)
    except CheckpointError:
        raise
    except Exception as error:
        # diffusers, safetensors and hub clients raise types of their own; a bad file must still end in one clear line.
        raise CheckpointError(
            f"expected a pipeline that diffusers can read, the {kind} {text!r} is not: {first_line(error)}"
        ) from error


def _refuse_unread(options: dict[str, str | None], is_read: bool, expected: str, text: str) -> None:
    for name, value in options.items():
        if value is not None and not is_read:
            raise SettingError(
                f"expected {name} (--{name}) with {expected} as model, got {value!r:.80} with {text!r:.80}"
            )


def _check_folder(path: Path, text: str) -> None:
    """Refuse a folder that is no pipeline's."""
    if (path / "model_index.json").is_file():
        return
    if (path / "config.json").is_file() and "UNet" in (path / "config.json").read_text(errors="replace"):
        raise CheckpointError(
            f"expected a pipeline's folder, {text!r} holds a U-Net alone; pass it as unet (--unet) with a base model"
        )
    raise CheckpointError(
        f"expected a pipeline's folder with a model_index.json, {text!r} has none. Pass the folder above unet/ and vae/, or "
        "pass a unet/ alone as unet (--unet) with a base model."
    )


def _hub_files(repository: str, revision: str | None) -> list[str]:
    """The files of a hub repository; none where they cannot be listed, so that diffusers says why."""
    from huggingface_hub import list_repo_files

    try:
        return list_repo_files(repository, revision=revision)
    except Exception:  # the hub's clients raise types of their own
        return []
