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
from .moving import outside_inference_mode
from .pretrained import bundled_path, local_path
from .settings import BUNDLED_GUIDANCE_SCALE, GUIDANCE_SCALE

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


def default_guidance_scale(pipe: Any) -> float:
    """Return the strength of classifier-free guidance that every command and function uses for a model by default.

    It is 1, so none, under masks that were trained to replace guidance.

    Args:
        pipe: a pipeline.
    """
    attachment = vars(getattr(pipe, "unet", None) or object).get("_maskunet_attachment")
    if attachment is not None and attachment.enabled and attachment.masker.replaced_guidance is not None:
        return 1.0
    return BUNDLED_GUIDANCE_SCALE if is_bundled(pipe) else GUIDANCE_SCALE


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
) -> Any:
    """Load a Stable Diffusion pipeline.

    Args:
        source: "shapes" (bundled), a folder in the diffusers format, a `.safetensors` file, or a hub id.
        dtype: dtype of its weights.
        device: device of its weights.
        scheduler: a key of `SCHEDULERS`; the checkpoint's own if None.
        revision: branch, tag or commit on the hub.

    Raises:
        CheckpointError: the source is missing or not a readable pipeline.
        SettingError: an unknown scheduler.
    """
    if scheduler is not None and scheduler not in SCHEDULERS:
        raise SettingError(f"expected a scheduler among {', '.join(SCHEDULERS)}, got {scheduler!r}")
    text = os.fspath(source)
    pipe = _read(os.fspath(bundled_path("shapes")) if text == "shapes" else text, dtype, revision)
    if not hasattr(pipe, "unet"):
        raise CheckpointError(f"expected a pipeline with a U-Net in {text!r}, got {type(pipe).__name__}")
    pipe = pipe.to(device)
    if scheduler is not None:
        import diffusers

        class_name, overrides = SCHEDULERS[scheduler]
        pipe.scheduler = getattr(diffusers, class_name).from_config(pipe.scheduler.config, **overrides)
    return pipe


def _read_single_file(text: str, **options: Any) -> Any:
    """Read a .safetensors file of Stable Diffusion 1.x, 2.x or XL."""
    import diffusers
    from safetensors import safe_open

    with safe_open(text, "pt") as file:
        # Only XL has a second text encoder.
        is_xl = any(key.startswith("conditioner.embedders.1.") for key in file.keys())  # noqa: SIM118
    pipeline_class = diffusers.StableDiffusionXLPipeline if is_xl else diffusers.StableDiffusionPipeline
    return pipeline_class.from_single_file(text, **options)


def _read(text: str, dtype: torch.dtype, revision: str | None) -> Any:
    import diffusers

    path = local_path(text)
    options: dict[str, Any] = {"dtype": dtype}
    if path.is_file():
        if path.suffix != ".safetensors":
            raise CheckpointError(
                f"expected a folder or a .safetensors file, got {text!r}; pickled checkpoints are not read. Convert it "
                "with diffusers' convert_original_stable_diffusion_to_diffusers.py --to_safetensors."
            )
        reader, kind = _read_single_file, "file"
    elif path.is_dir():
        if not (path / "model_index.json").is_file():
            raise CheckpointError(
                f"expected a pipeline's folder with a model_index.json, {text!r} has none. Pass the folder above unet/ "
                "and vae/."
            )
        reader, kind = diffusers.DiffusionPipeline.from_pretrained, "folder"
        options |= {"local_files_only": True, "use_safetensors": True}
    elif text.count("/") == 1 and not text.startswith((".", "/", "~")):
        reader, kind = diffusers.DiffusionPipeline.from_pretrained, "hub id"
        options |= {"revision": revision, "use_safetensors": True}
    else:
        raise CheckpointError(
            f"expected 'shapes', a pipeline's folder, a .safetensors file or a hub id like 'user/name', got {text!r}, "
            "which does not exist"
        )
    try:
        return reader(str(path) if kind != "hub id" else text, **options)
    except Exception as error:
        # diffusers, safetensors and hub clients raise types of their own; a bad file must still end in one clear line.
        raise CheckpointError(
            f"expected a pipeline that diffusers can read, the {kind} {text!r} is not: {first_line(error)}"
        ) from error
