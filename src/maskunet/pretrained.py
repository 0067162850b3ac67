"""Find pretrained weights on disk, in the package or on the hub, and read their tensors without running code in them."""

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
#: Bundled models by name, with a description; `bundled_path` returns their folders.
BUNDLED = {
    "shapes": "text-to-image pipeline",
    "shapes-masker": "masker for the pipeline",
    "shapes-clip": "CLIP of the shapes world, for image features",
    "shapes-reward": "reward of the shapes world",
    "shapes-matching": "reward that also reads the caption",
    "shapes-referee": "second reward, trained separately, for which nothing is optimised",
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
    """Return the path of a checkpoint file, fetched from the hub if need be.

    Args:
        source: the file itself, a folder that has it, or a hub id "user/name".
        names: file names to look for in a folder or a repository, preferred first.
        revision: branch, tag or commit on the hub.
        token: access token for the hub.

    Raises:
        CheckpointError: none of the names exists there.
    """
    path = local_path(source)
    if path.is_file():
        return path
    expected = " or ".join(names)
    if path.is_dir():
        for name in names:
            if (path / name).is_file():
                return path / name
        raise CheckpointError(f"expected {expected} in the folder {path}, there is none")
    text = os.fspath(source)
    if not is_hub_id(source):
        raise CheckpointError(f"expected a file, a folder with {expected}, or a hub id like 'user/name', got {text!r}")
    reason = ""
    for name in names:
        try:
            return Path(hf_hub_download(text, name, revision=revision, token=token))
        except (HfHubHTTPError, HFValidationError, EntryNotFoundError, OSError) as error:
            # A repository without this file may have the next one; an unreachable hub has none.
            if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
                reason = reason or first_line(error)
                continue
            raise CheckpointError(
                f"expected a file, a folder or a hub id, {text!r} is neither of the first and {name} could not be fetched "
                f"from the hub: {first_line(error)}"
            ) from error
    raise CheckpointError(f"expected {expected} in the hub repository {text!r}, there is none: {reason}")


def local_path(source: Source) -> Path:
    """Return a source as a path on this disk, which need not exist.

    Args:
        source: path or hub id.

    Raises:
        CheckpointError: no file can have such a name.
    """
    try:
        path = Path(source).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"expected a path or a hub id, got {os.fspath(source)!r:.80}: {first_line(error):.80}"
        ) from error
    return path


def is_hub_id(source: Source) -> bool:
    """Return whether a source reads like "user/name" and is no path on this disk.

    Args:
        source: path or hub id.
    """
    text = os.fspath(source)
    return text.count("/") == 1 and not text.startswith((".", "/", "~")) and not Path(text).exists()


def sibling_file(source: Source, name: str) -> Path | None:
    """Return a file in the folder `source`, or next to the file `source`; None if it does not exist.

    Args:
        source: folder or file.
        name: name of the file.
    """
    path = Path(source).expanduser()
    sibling = (path if path.is_dir() else path.parent) / name
    return sibling if path.exists() and sibling.is_file() else None


def tokenizer_source(source: Source, tokenizer: Any, default: str) -> Any:
    """Return the source of a checkpoint's tokenizer.

    Args:
        source: the checkpoint's file, folder or hub id.
        tokenizer: a tokenizer, or its folder or hub id; returned as it is unless None.
        default: hub id for a checkpoint whose folder holds no tokenizer.

    Returns:
        `tokenizer`, else the checkpoint's own folder if it holds one, else `default`.
    """
    if tokenizer is not None:
        return tokenizer
    file = next((file for name in _TOKENIZER_FILES if (file := sibling_file(source, name))), None)
    return str(file.parent) if file else default


def load_tokenizer(kind: Any, source: Any, **options: Any) -> Any:
    """Load a tokenizer from a folder or the hub.

    Args:
        kind: its class in transformers.
        source: folder, hub id, or the tokenizer itself, which is returned as it is.
        options: options of its `from_pretrained`.

    Raises:
        CheckpointError: it cannot be read.
    """
    if not isinstance(source, str | os.PathLike):
        return source
    try:
        tokenizer = kind.from_pretrained(os.fspath(source), **options)
        # transformers builds a tokenizer of special tokens alone from a folder without a vocabulary.
        if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
            raise ValueError("it has no words")
        return tokenizer
    except Exception as error:  # hub, file and config errors of several libraries
        raise CheckpointError(
            f"expected a tokenizer in {os.fspath(source)!r}, could not read it: {first_line(error)}. Pass a folder or "
            "a hub id that has it as tokenizer=."
        ) from error


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint.

    Args:
        path: a `.safetensors` file, or one written by `torch.save`, which is read with `weights_only=True` and unwrapped
            by `unwrap_state_dict`.

    Raises:
        CheckpointError: the file is unreadable, or holds something other than tensors by name.
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
    return unwrap_state_dict(content, str(path))


def unwrap_state_dict(content: Any, source: str) -> dict[str, Tensor]:
    """Return the state dict in a loaded checkpoint.

    A dict under "state_dict" or "model" is taken out, and the "module." of a wrapper removed from its keys.

    Args:
        content: what `torch.load` returned.
        source: name of the checkpoint, for the error.

    Raises:
        CheckpointError: there is no state dict.
    """
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    tensors = dict(content) if isinstance(content, Mapping) else {}
    if not tensors or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in tensors.items()):
        raise CheckpointError(f"expected a state dict of tensors in {source}, got {type(content).__name__}")
    return {key.removeprefix("module."): value for key, value in tensors.items()}


def build_frozen(kind: Any, config: Any, tensors: Mapping[str, Tensor], name: str, dtype: torch.dtype) -> Any:
    """Build a transformers model from a config and a state dict, frozen and in evaluation mode.

    Args:
        kind: its class.
        config: its config.
        tensors: its state dict.
        name: name of the model, for errors.
        dtype: dtype of its weights.

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
    """Refuse a model with weights that its checkpoint lacks, since they would be random.

    Args:
        report: loading info of transformers.
        name: name of the model, for the error.

    Raises:
        CheckpointError: weights are missing.
    """
    missing = sorted(report["missing_keys"])
    if missing:
        raise CheckpointError(
            f"expected a complete checkpoint of {name}, {len(missing)} tensors are missing, such as {missing[0]!r}"
        )
