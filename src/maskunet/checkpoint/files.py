"""Files of maskers: a folder with `config.json`, `masker.safetensors` and a model card, local or on the hub."""

from __future__ import annotations

import inspect
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import CheckpointError, first_line
from ..moving import outside_inference_mode
from ..network import Network
from ..pretrained import BUNDLED, bundled_path, is_hub_id, local_path
from ..targets import check_fits, unet_of
from .finite import require_finite
from .model_card import write_card

CONFIG, WEIGHTS, CARD = "config.json", "masker.safetensors", "README.md"
FORMAT = 1
#: Masker classes by name, as in their config.json; each class registers itself when it is defined.
_REGISTRY: dict[str, type[Any]] = {}


class Savable(Protocol):
    """The part of a masker that its files hold."""

    network: Network
    replaced_guidance: float | None

    @property
    def settings(self) -> dict[str, Any]:
        """Constructor arguments after the network, as JSON values."""

    @property
    def conditions(self) -> tuple[str, ...]:
        """What masks depend on."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors to save."""


def register(masker_class: type[Any]) -> None:
    """Make a masker class known to `load`; `Masker` calls it for every subclass.

    Args:
        masker_class: the class, with `from_settings` and `load_tensors`.
    """
    _REGISTRY[masker_class.__name__] = masker_class


def masker_names() -> list[str]:
    """Return the names of the masker classes that `load` reads."""
    return sorted(name for name, masker_class in _REGISTRY.items() if not inspect.isabstract(masker_class))


def masker_class(name: str) -> type[Any]:
    """Return a class of maskers.

    Args:
        name: its name.

    Raises:
        CheckpointError: there is no such class.
    """
    if name not in masker_names():
        raise CheckpointError(f"expected a masker ({', '.join(masker_names())}), got {name!r:.80}")
    return _REGISTRY[name]


def save(
    masker: Savable,
    folder: str | os.PathLike[str],
    *,
    base_model: str | None = None,
    dataset: str | None = None,
    recipe: Mapping[str, str] | None = None,
) -> Path:
    """Write a masker to a folder.

    The files are written under temporary names and renamed together, so an interrupted save leaves the previous masker
    intact. An existing model card is kept, as are other files.

    Args:
        masker: the masker.
        folder: the folder; made if missing.
        base_model: name of its base model, for the card.
        dataset: name of its training data set, for the card.
        recipe: rows of the card's recipe table.

    Returns:
        The folder.

    Raises:
        CheckpointError: the folder cannot be written, or a tensor holds NaN or Inf.
    """
    path = Path(folder)
    config = {
        "format": FORMAT,
        "masker": type(masker).__name__,
        "settings": masker.settings,
        "base_model": base_model,
        "network": masker.network.to_json(),
    }
    if masker.replaced_guidance is not None:
        config["replaced_guidance"] = masker.replaced_guidance
    card = write_card(
        type(masker).__name__,
        masker.network,
        masker.settings,
        base_model=base_model,
        dataset=dataset,
        recipe=recipe,
        conditions=masker.conditions,
        replaced_guidance=masker.replaced_guidance,
    )
    tensors = {key: value.detach().cpu().contiguous() for key, value in masker.tensors().items()}
    require_finite(tensors, f"a {type(masker).__name__} to save", "go back to a checkpoint from before")
    try:
        path.mkdir(parents=True, exist_ok=True)
        parts = {name: path / (name + ".part") for name in (WEIGHTS, CONFIG, CARD)}
        try:
            save_file(tensors, parts[WEIGHTS], metadata={"format": "pt"})
            parts[CONFIG].write_text(json.dumps(config, indent=1) + "\n")
            parts[CARD].write_text(card)
            for name, part in parts.items():  # renamed only when all are complete
                if name != CARD or not (path / CARD).exists():
                    part.replace(path / name)
        finally:
            for part in parts.values():
                part.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"expected a folder that can be written, {path} cannot be: {first_line(error)}"
        ) from error
    return path


def push(
    masker: Savable,
    repo_id: str,
    *,
    base_model: str | None = None,
    dataset: str | None = None,
    recipe: Mapping[str, str] | None = None,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str = "Upload masker",
) -> str:
    """Upload the files of `save` to the hub, in one commit.

    Args:
        masker: the masker.
        repo_id: "user/name"; created if missing.
        base_model: name of its base model, for the card.
        dataset: name of its training data set, for the card.
        recipe: rows of the card's recipe table.
        private: whether a new repository is private; the account's default if None.
        token: access token; the stored one if None.
        revision: branch to commit to; the main one if None.
        commit_message: message of the commit.

    Returns:
        The commit's address.
    """
    api = HfApi(token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        save(masker, folder, base_model=base_model, dataset=dataset, recipe=recipe)
        info = api.upload_folder(repo_id=repo_id, folder_path=folder, revision=revision, commit_message=commit_message)
    return str(info.commit_url)


def _folder(source: str | os.PathLike[str], revision: str | None, token: str | None) -> Path:
    if not isinstance(source, str | os.PathLike):
        raise CheckpointError(
            f"expected a masker's folder, a hub id or a bundled name, got {type(source).__name__} {source!r:.80}"
        )
    path, text = local_path(source), os.fspath(source)
    if path.is_dir():
        return path
    if text in BUNDLED:
        return bundled_path(text)
    if not is_hub_id(text):
        raise CheckpointError(
            f"expected a masker's folder or a hub id like 'user/name', got {text!r}, which "
            f"{'is a file' if path.exists() else 'does not exist'}"
        )
    try:
        return Path(snapshot_download(text, revision=revision, token=token, allow_patterns=[CONFIG, WEIGHTS, CARD]))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise CheckpointError(
            f"expected a masker's folder or a hub id, {text!r} is no folder here and could not be fetched from the hub: "
            f"{first_line(error)}"
        ) from error


def read_config(folder: Path) -> dict[str, Any]:
    """Read and check a masker's config.json.

    Args:
        folder: the masker's folder.

    Returns:
        Its content.

    Raises:
        CheckpointError: it is missing, unreadable, or not a masker's.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"expected a masker's {CONFIG} in {folder}, could not read one: {first_line(error)}"
        ) from error
    config = config if isinstance(config, dict) else {}
    name, version = config.get("masker"), config.get("format")
    is_newer = isinstance(name, str) and isinstance(version, int) and version > FORMAT
    if not is_newer and (not isinstance(name, str) or name not in masker_names()):
        kind = config.get("_class_name", name)
        raise CheckpointError(
            f"expected {path} to name a masker ({', '.join(masker_names())}), got {kind!r}. Is {folder} a masker's folder?"
        )
    if version != FORMAT:
        raise CheckpointError(f"expected format {FORMAT} in {path}, got {version!r}; upgrade maskunet to read it")
    return config


@outside_inference_mode()
def load(
    source: str | os.PathLike[str],
    model: Any = None,
    *,
    revision: str | None = None,
    token: str | None = None,
    device: torch.device | str | None = None,
) -> Any:
    """Read a masker from a folder or the hub.

    Args:
        source: the folder, a hub id "user/name", or a bundled name ("shapes-masker").
        model: the pipeline or U-Net to attach it to; a masker for another one is refused.
        revision: branch, tag or commit on the hub.
        token: access token for the hub; the stored one if None.
        device: device of its tensors; an attached masker follows the U-Net in any case.

    Returns:
        The masker, in evaluation mode.

    Raises:
        CheckpointError: files are missing, unreadable, not a masker's, or hold NaN or Inf.
        TargetError: it was made for another network; the differing layers are named.
    """
    folder = _folder(source, revision, token)
    config = read_config(folder)
    network = Network.from_json(config.get("network", []))
    if model is not None:
        check_fits(unet_of(model), network)
    try:
        tensors: dict[str, Tensor] = load_file(folder / WEIGHTS)
        require_finite(tensors, str(folder / WEIGHTS), "save the masker again from a checkpoint before")
        masker = _REGISTRY[config["masker"]].from_settings(network, config["settings"])
        masker.load_tensors(tensors)
        scale = config.get("replaced_guidance")
        masker.replaced_guidance = None if scale is None else float(scale)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"expected {folder / WEIGHTS} to be a safetensors file, could not read it: {first_line(error)}"
        ) from error
    except (RuntimeError, TypeError, KeyError, ValueError) as error:
        # PyTorch names the tensors that do not fit on the second line.
        raise CheckpointError(
            f"expected {folder / WEIGHTS} and {CONFIG} to describe the same {config['masker']}, they do not: "
            f"{' '.join(str(error).strip().splitlines()[:2])}"
        ) from error
    return masker.to(device) if device is not None else masker
