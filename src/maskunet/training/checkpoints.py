"""The run's folder: its settings, its log, and checkpoints that are complete or absent.

    config.json                 settings of the run, and fingerprints of its model and data
    stats.jsonl                 one line of figures every few steps
    checkpoint-000500/state.pt  trained parameters, their average, optimiser and schedule after 500 steps
    masker/ lora/ unet/         the trained parameters, at the end

Everything random follows from the seed and the step's number, so a state needs no random number generators.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError, DataError, first_line
from ..files import make_folder, save_folder, save_text

logger = logging.getLogger(__name__)

STATS, CONFIG, STATE = "stats.jsonl", "config.json", "state.pt"
#: The group of settings that identify model and data; see `fingerprints`.
FINGERPRINTS = "fingerprints"
_NAME = re.compile(r"checkpoint-(\d+)")
#: Settings that may change when a run is resumed: the steps that are done do not depend on them.
FREE = {
    "max_train_steps",
    "gradient_checkpointing",
    "checkpoints_total_limit",
    "resume_from_checkpoint",
    "report_to",
    "logging_steps",
    "checkpointing_steps",
    "validation_samples",
    "validation_steps",
    "validation_rewards",
    "validation_batch_size",
    "validation_prompts",
    "validation_num_inference_steps",
    "validation_guidance_scale",
}
#: Settings that runs saved by earlier versions lack, with the values that those runs trained with.
IMPLIED = {"allow_tf32": False, "guidance_scale": None, "guidance_rescale": 0.0, "negative_prompt": ""}
_SHORT = 40


class Checkpoints:
    """The folder of one run.

    Args:
        folder: its path.
        settings: settings of the run, as JSON values by group.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder, self.settings = folder, json.loads(json.dumps(settings, default=str))

    def saved(self) -> list[Path]:
        """Return the complete checkpoints, oldest first."""
        paths = [p for p in self.folder.glob("checkpoint-*") if _NAME.fullmatch(p.name) and (p / STATE).is_file()]
        return sorted(paths, key=lambda path: int(path.name.removeprefix("checkpoint-")))

    def create_folder(self) -> None:
        """Make the folder, delete what an interrupted write left, and write `config.json`.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        try:
            make_folder(self.folder)
            for part in self.folder.glob("checkpoint-*.part"):
                shutil.rmtree(part, ignore_errors=True)
            save_text(json.dumps(self.settings, indent=1) + "\n", self.folder / CONFIG)
        except DataError as error:
            raise CheckpointError(str(error)) from error

    def load(self, name: str | None) -> dict[str, Any] | None:
        """Return the state to resume from, or None for a fresh run.

        Args:
            name: "latest", the name or path of a checkpoint, or None for a fresh run.

        Raises:
            CheckpointError: no such checkpoint, one that cannot be read, one of a run with other settings, another model or
                other data, or one of more steps than the run shall have.
        """
        paths = self.saved()
        if name is None:
            if paths:
                raise CheckpointError(
                    f"expected an empty run folder, {self.folder} holds {paths[-1].name}; use "
                    "resume_from_checkpoint='latest' or another output_dir"
                )
            return None
        if name == "latest":
            if not paths:
                return None
            path = paths[-1]
        else:
            path = Path(name) if Path(name).is_dir() else self.folder / name
            if not (path / STATE).is_file():
                names = ", ".join(p.name for p in paths) or "none"
                raise CheckpointError(f"expected a checkpoint of {self.folder} ({names}), got {name!r}")
        try:
            state: dict[str, Any] = torch.load(path / STATE, weights_only=True, map_location="cpu")
            saved_settings = json.loads(state["settings"])
        except Exception as error:  # a damaged file can raise anything from the unpickler
            raise CheckpointError(
                f"expected the state of a run in {path}, could not read it ({type(error).__name__}); delete that "
                "folder to resume from the checkpoint before it"
            ) from error
        self._check_settings(saved_settings)
        if state["step"] > (steps := self.settings["config"]["max_train_steps"]):
            raise CheckpointError(
                f"expected max_train_steps >= {state['step']}, the steps that {path} has done, got {steps}; raise it or use "
                "another output_dir"
            )
        logger.info("resumed %s at step %d", path, state["step"])
        return state

    def _check_settings(self, saved: dict[str, Any]) -> None:
        differences = []
        for group, current in self.settings.items():
            if group == FINGERPRINTS and group not in saved:
                logger.warning(
                    "%s holds no fingerprints, because an earlier version wrote it; make sure that model and data are those "
                    "of the run",
                    self.folder,
                )
                continue
            former = IMPLIED | saved.get(group, {}) if group == "config" else saved.get(group, {})
            for key in sorted((current.keys() | former.keys()) - FREE):
                values = current.get(key), former.get(key)
                if values[0] != values[1] and group == FINGERPRINTS:
                    differences.append(f"another {key} (fingerprint {values[0]} instead of {values[1]})")
                elif values[0] != values[1]:
                    is_short = max(len(str(value)) for value in values) <= _SHORT
                    differences.append(f"{key} {values[0]} instead of {values[1]}" if is_short else f"another {key}")
        if differences:
            raise CheckpointError(
                f"expected the settings of the run in {self.folder}, got {', '.join(differences)}; set them back or use "
                "another output_dir"
            )

    def save(self, state: dict[str, Any], limit: int | None) -> Path:
        """Write a checkpoint, then delete the oldest ones.

        Args:
            state: the state, with its "step".
            limit: keep the last N checkpoints; all if None.

        Returns:
            The checkpoint's folder.

        Raises:
            CheckpointError: it cannot be written; earlier checkpoints are intact.
        """
        path = self.folder / f"checkpoint-{state['step']:06d}"
        content = state | {"settings": json.dumps(self.settings)}
        try:
            save_folder(path, lambda part: torch.save(content, part / STATE))
        except (DataError, RuntimeError) as error:  # torch raises a RuntimeError on a full disk
            paths = self.saved()
            last = f"{paths[-1]} is intact" if paths else "there is none yet"
            raise CheckpointError(
                f"expected to write a checkpoint to {path}, could not: {first_line(error.__cause__ or error)}. Last good "
                f"checkpoint: {last}. Make room and run the same command again."
            ) from error
        for old in self.saved()[: -max(1, limit)] if limit else []:
            shutil.rmtree(old, ignore_errors=True)
        return path

    def append_stats(self, entry: dict[str, Any]) -> None:
        """Append a line to `stats.jsonl`.

        Args:
            entry: figures of a step.
        """
        with (self.folder / STATS).open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def read_stats(self) -> list[dict[str, Any]]:
        """Return the entries of `stats.jsonl`."""
        path = self.folder / STATS
        entries = []
        for line in path.read_text().splitlines() if path.is_file() else []:
            try:
                entries.append(json.loads(line))
            except json.JSONDecodeError:  # the last line of a killed run may be incomplete
                continue
        return entries

    def drop_stats_after(self, step: int) -> None:
        """Delete the entries of later steps, which a killed run logged past its last checkpoint.

        Args:
            step: the last step to keep.

        Raises:
            DataError: the file cannot be written.
        """
        if (self.folder / STATS).is_file():
            entries = [entry for entry in self.read_stats() if entry["step"] <= step]
            save_text("".join(json.dumps(entry) + "\n" for entry in entries), self.folder / STATS)
