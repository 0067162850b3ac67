"""Pretrained weights: where they are (on disk, in the package, on the hub) and their tensors; no code in them is run."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .errors import CheckpointError, first_line

Source = str | os.PathLike[str]
#: Bundled models by name, and what each is; `bundled_path` gives their folders.
BUNDLED = {
    "shapes": "text-to-image pipeline",
    "shapes-masker": "masker for the pipeline",
    "shapes-clip": "CLIP of the shapes world, for image features",
    "shapes-reward": "reward of the shapes world",
    "shapes-matching": "reward that reads the caption beside the image",
    "shapes-referee": "a second reward, trained separately, that nothing is optimised for",
}
_WEIGHTS = Path(__file__).parent / "zoo" / "weights"
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json")


def bundled_path(name: str) -> Path:
    """Return the folder of a bundled model.

    Args:
        name: one of `BUNDLED`.

    Raises:
        CheckpointError: there is no such model, or its weights are missing from the installation.
    """
    if name not in BUNDLED:
        raise CheckpointError(f"expected a bundled model ({', '.join(BUNDLED)}), got {name!r}")
    folder = _WEIGHTS / name
    if not folder.is_dir():
        raise CheckpointError(f"expected the weights of {name!r} in {folder}, they are missing; reinstall maskunet")
    return folder


def locate(source: Source, names: Sequence[str], *, revision: str | None = None, token: str | None = None) -> Path:
    """Return the path of a checkpoint, fetched if need be.

    Args:
        source: the file itself, a folder that has it, or a hub id "user/name".
        names: file names to look for in a folder or a repository, the preferred first.
        revision: branch, tag or commit on the hub.
        token: access token for the hub.

    Raises:
        CheckpointError: none of the names is there.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return path
    wanted = " or ".join(names)
    if path.is_dir():
        for name in names:
            if (path / name).is_file():
                return path / name
        raise CheckpointError(f"expected {wanted} in the folder {path}, there is none")
    text = os.fspath(source)
    if not is_hub_id(source):
        raise CheckpointError(f"expected a file, a folder with {wanted}, or a hub id like 'user/name', got {text!r}")
    reason = ""
    for name in names:
        try:
            return Path(hf_hub_download(text, name, revision=revision, token=token))
        except (HfHubHTTPError, HFValidationError, EntryNotFoundError, OSError) as error:
            # A repository that has no such file, unlike a hub that cannot be reached, may have the next.
            if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
                reason = reason or first_line(error)
                continue
            raise CheckpointError(
                f"expected a file, a folder or a hub id, {text!r} is neither of the first and {name} could not be fetched "
                f"from the hub: {first_line(error)}"
            ) from error
    raise CheckpointError(f"expected {wanted} in the hub repository {text!r}, there is none: {reason}")


def is_hub_id(source: Source) -> bool:
    """Return whether a source that is nothing on this disk reads like "user/name"."""
    text = os.fspath(source)
    return text.count("/") == 1 and not text.startswith((".", "/", "~")) and not Path(text).exists()


def beside(source: Source, name: str) -> Path | None:
    """Return a file of that name in the folder `source`, or next to the file `source`; None if there is none."""
    path = Path(source).expanduser()
    found = (path if path.is_dir() else path.parent) / name
    return found if path.exists() and found.is_file() else None


def tokenizer_source(source: Source, tokenizer: Any, default: str) -> Any:
    """Return where the tokenizer comes from: as given, else the checkpoint's own folder if it has one, else `default`."""
    if tokenizer is not None:
        return tokenizer
    own = next((file for name in _TOKENIZER_FILES if (file := beside(source, name))), None)
    return str(own.parent) if own else default


def load_tokenizer(kind: Any, source: Any, **options: Any) -> Any:
    """Return a tokenizer of class `kind` from a folder or the hub; what is not a path is taken to be one already.

    Args:
        kind: class of transformers.
        source: folder, hub id, or the tokenizer itself.
        options: passed on to `from_pretrained`.

    Raises:
        CheckpointError: it cannot be read.
    """
    if not isinstance(source, str | os.PathLike):
        return source
    try:
        found = kind.from_pretrained(os.fspath(source), **options)
        if len(found) <= len(set(found.all_special_ids)):  # what transformers makes of a folder without a vocabulary
            raise ValueError("it has no words")
        return found
    except Exception as error:  # hub, file and config errors of several libraries
        raise CheckpointError(
            f"expected a tokenizer in {os.fspath(source)!r}, could not read it: {first_line(error)}. Pass tokenizer= a "
            "folder or a hub id that has it."
        ) from error


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint.

    Args:
        path: a `.safetensors` file, or one written by `torch.save`, which is read with `weights_only=True`. A state dict
            under "state_dict" or "model" is taken out, and a wrapper's "module." removed from its keys.

    Raises:
        CheckpointError: unreadable, or something else than tensors by name.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # Only the zip format can be mapped instead of read.
        mmap = zipfile.is_zipfile(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (OSError, SafetensorError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"expected {path} to hold tensors, as safetensors or as torch.load(weights_only=True) reads them, could not "
            f"read it: {first_line(error)}"
        ) from error
    return unwrapped(content, str(path))


def unwrapped(content: Any, where: str) -> dict[str, Tensor]:
    """Return the state dict in a loaded checkpoint.

    Raises:
        CheckpointError: there is none.
    """
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    tensors = dict(content) if isinstance(content, Mapping) else {}
    if not tensors or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in tensors.items()):
        raise CheckpointError(f"expected a state dict of tensors in {where}, got {type(content).__name__}")
    return {key.removeprefix("module."): value for key, value in tensors.items()}


def build(kind: Any, config: Any, tensors: Mapping[str, Tensor], name: str, dtype: torch.dtype) -> Any:
    """Build a transformers model from a config and a state dict, frozen and in evaluation mode.

    Raises:
        CheckpointError: the tensors do not fill the model.
    """
    try:
        model, report = kind.from_pretrained(
            None, config=config, state_dict=dict(tensors), dtype=dtype, output_loading_info=True
        )
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"expected tensors that fit {name}'s network, they do not: {first_line(error)}"
        ) from error
    require_complete(report, name)
    return model.eval().requires_grad_(False)


def require_complete(report: Mapping[str, Any], name: str) -> None:
    """Refuse a model that has weights which the checkpoint did not give it; they would be random.

    Raises:
        CheckpointError: some are missing.
    """
    missing = sorted(report["missing_keys"])
    if missing:
        raise CheckpointError(
            f"expected a complete checkpoint of {name}, {len(missing)} tensors are missing, such as {missing[0]!r}"
        )
