"""The run's folder: checkpoints that are whole or not there, the figures, and the settings.

    config.json                 settings of the run
    stats.jsonl                 a line of figures every few steps
    checkpoint-000500/state.pt  what trains, its average, optimiser and schedule after 500 steps
    masker/ lora/ unet/         what was trained, at the end

All that is random follows from the seed and the step's number, so a state needs no random number generators.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError

logger = logging.getLogger(__name__)

STATS, CONFIG, STATE = "stats.jsonl", "config.json", "state.pt"
_NAME = re.compile(r"checkpoint-(\d+)")
#: Settings that may change when a run is resumed: they do not touch what is trained.
FREE = {
    "checkpoints_total_limit",
    "resume_from_checkpoint",
    "report_to",
    "logging_steps",
    "checkpointing_steps",
    "validation_prompts",
    "validation_num_inference_steps",
    "validation_guidance_scale",
}


class Checkpoints:
    """Checkpoints of one run.

    Args:
        folder: the run's folder; made if missing.
        settings: settings of the run, JSON values by group.

    Raises:
        CheckpointError: the folder cannot be written.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], *, writes: bool = True) -> None:
        self.folder, self.settings = folder, json.loads(json.dumps(settings, default=str))
        if not writes:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"expected a folder that can be written, got {folder}: {error}") from error
        for left in folder.glob("checkpoint-*.part"):
            shutil.rmtree(left, ignore_errors=True)

    def all(self) -> list[Path]:
        """Return the whole checkpoints, the oldest first."""
        found = [p for p in self.folder.glob("checkpoint-*") if _NAME.fullmatch(p.name) and (p / STATE).is_file()]
        return sorted(found, key=_step)

    def start(self) -> None:
        """Write `config.json`."""
        self._replace(self.folder / CONFIG, json.dumps(self.settings, indent=1) + "\n")

    def read(self, which: str | None) -> dict[str, Any] | None:
        """Return the state to go on from, or None for a fresh start.

        Args:
            which: "latest", the name or path of a checkpoint, or None to start afresh.

        Raises:
            CheckpointError: there is none of that name, it cannot be read, or its run had other settings.
        """
        if which is None:
            if self.all():
                raise CheckpointError(
                    f"expected an empty run folder, {self.folder} holds {self.all()[-1].name}; use "
                    "resume_from_checkpoint='latest' or another output_dir"
                )
            return None
        if which == "latest":
            if not (found := self.all()):
                return None
            path = found[-1]
        else:
            path = Path(which) if Path(which).is_dir() else self.folder / which
            if not (path / STATE).is_file():
                there = ", ".join(p.name for p in self.all()) or "none"
                raise CheckpointError(f"expected a checkpoint of {self.folder} ({there}), got {which!r}")
        try:
            state: dict[str, Any] = torch.load(path / STATE, weights_only=True, map_location="cpu")
            before = json.loads(state["settings"])
        except Exception as error:  # a damaged file can raise anything from the unpickler
            raise CheckpointError(
                f"expected the state of a run in {path}, could not read it ({type(error).__name__}); delete that "
                "folder to go on from the checkpoint before it"
            ) from error
        for group, now in self.settings.items():
            then = before.get(group, {})
            changed = sorted(k for k in now.keys() | then.keys() if k not in FREE and now.get(k) != then.get(k))
            if changed:
                raise CheckpointError(
                    f"expected {self.folder} to hold a run with these settings, {', '.join(changed)} differ; use "
                    "another output_dir"
                )
        logger.info("resumed %s at step %d", path, state["step"])
        return state

    def write(self, state: dict[str, Any], limit: int | None) -> Path:
        """Write a checkpoint, then delete the oldest ones past `limit`.

        Raises:
            CheckpointError: it cannot be written; the earlier ones are intact.
        """
        path = self.folder / f"checkpoint-{state['step']:06d}"
        part = path.with_name(path.name + ".part")
        try:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            torch.save(state | {"settings": json.dumps(self.settings)}, part / STATE)
            if path.exists():
                shutil.rmtree(path)
            part.replace(path)
        except (OSError, RuntimeError) as error:
            shutil.rmtree(part, ignore_errors=True)
            last = self.all()
            kept = f"{last[-1]} is intact" if last else "there is none yet"
            raise CheckpointError(
                f"expected to write a checkpoint to {path}, could not: {str(error).splitlines()[0]}. Last good "
                f"checkpoint: {kept}. Side room and run the same command again."
            ) from error
        for old in self.all()[: -max(1, limit)] if limit else []:
            shutil.rmtree(old, ignore_errors=True)
        return path

    def log(self, entry: dict[str, Any]) -> None:
        """Append a line of figures."""
        with (self.folder / STATS).open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def stats(self, until: int | None = None) -> list[dict[str, Any]]:
        """Return the figures; with `until`, drop those of later steps from the file as well."""
        path = self.folder / STATS
        if not path.is_file():
            return []
        entries = []
        for line in path.read_text().splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:  # the line that was being written when the run was killed
                continue
            if until is None or entry["step"] <= until:
                entries.append(entry)
        if until is not None:
            self._replace(path, "".join(json.dumps(e) + "\n" for e in entries))
        return entries

    @staticmethod
    def _replace(path: Path, text: str) -> None:
        part = path.with_name(path.name + ".part")
        part.write_text(text)
        part.replace(path)


def _step(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match.group(1))
