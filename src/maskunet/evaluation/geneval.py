"""GenEval: its prompts, its folders, its rules, its results; on a detector of one's choice.

    <folder>/00000/metadata.jsonl          the prompt's line of evaluation_metadata.jsonl
    <folder>/00000/samples/0000.png ...    its pictures
    <folder>/records/00000/0000.json ...   prompt, seed and settings of each

GenEval's own scorer reads such a folder, and a folder that its own script made can be scored here.

Reference: Ghosh et al., "GenEval: An Object-Focused Framework for Evaluating Text-to-Image Alignment", NeurIPS 2023.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm.auto import tqdm

from ..errors import DataError
from ..files import make_folder
from ..metrics.geneval_rules import check, select
from ..relaxation import derive_seed
from .detectors import Detector
from .image_jobs import Shot
from .scores import Score

Metadata = Mapping[str, Any]


@dataclass(frozen=True)
class Sample:
    """A picture to score: its file, its prompt's number and what it must hold."""

    file: Path
    prompt: int
    metadata: Metadata


def read_metadata(path: Path) -> list[Metadata]:
    """Return the entries of an `evaluation_metadata.jsonl`.

    Raises:
        DataError: unreadable, or not in GenEval's keys.
    """
    try:
        entries = [json.loads(line) for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(f"expected GenEval's evaluation_metadata.jsonl, could not read {path}: {error}") from error
    if not entries:
        raise DataError(f"expected a prompt a line in {path}, it has none")
    for number, entry in enumerate(entries, 1):
        if wrong := _wrong(entry):
            raise DataError(f"expected GenEval's keys in line {number} of {path}: {wrong}")
    return entries


def _wrong(entry: Any) -> str | None:
    """What keeps an entry from being scored."""
    if (
        not isinstance(entry, dict)
        or not isinstance(entry.get("prompt"), str)
        or not isinstance(entry.get("tag"), str)
    ):
        return "'tag' and 'prompt' must be there"
    include, exclude = entry.get("include", []), entry.get("exclude", [])
    if not isinstance(include, list) or not isinstance(exclude, list) or not include + exclude:
        return "'include' or 'exclude' must list what to look for"
    for i, need in enumerate([*include, *exclude]):
        if (
            not isinstance(need, dict)
            or not isinstance(need.get("class"), str)
            or not isinstance(need.get("count"), int)
        ):
            return "each requirement must have a 'class' and a 'count'"
        if "position" in need:
            place = need["position"]
            if not isinstance(place, list) or len(place) != 2 or place[1] not in range(min(i, len(include))):
                return "'position' must be a relation and the number of an earlier requirement"
    return None


def find_samples(folder: Path) -> list[Sample]:
    """Return the pictures of a folder in GenEval's layout.

    Raises:
        DataError: there are none, or metadata that cannot be read.
    """
    found = []
    for place in sorted(p for p in folder.glob("*") if p.is_dir() and p.name.isdigit()):
        (entry, *_) = read_metadata(place / "metadata.jsonl")
        files = sorted(f for f in place.glob("samples/*") if re.fullmatch(r"\d+\.png", f.name))
        found += [Sample(file, int(place.name), entry) for file in files]
    if not found:
        raise DataError(f"expected GenEval's folders (00000/metadata.jsonl, 00000/samples/0000.png) in {folder}")
    return found


def require_known(metadata: Sequence[Metadata], detector: Detector) -> None:
    """Refuse prompts that ask for what the detector cannot find.

    Raises:
        DataError: a class or a colour that it does not know.
    """
    needs = [need for entry in metadata for need in (*entry.get("include", ()), *entry.get("exclude", ()))]
    for kind, asked, known in (
        ("classes", {need["class"] for need in needs}, detector.names),
        ("colours", {need["color"] for need in needs if "color" in need}, detector.palette),
    ):
        if unknown := sorted(asked - set(known)):
            raise DataError(
                f"expected {kind} that {type(detector).__name__} knows ({', '.join(sorted(known))}), the prompts ask for "
                f"{', '.join(unknown)}"
            )


@dataclass(frozen=True)
class GenEval:
    """GenEval on given prompts.

    Args:
        metadata: the prompts and what their pictures must hold.
        detector: finds and names objects; None where pictures are made and not scored.
        samples: pictures a prompt.
        seed: the noise of picture k of prompt i depends on this, k and i, and on nothing else.

    Raises:
        DataError: prompts that ask for what the detector does not know.
    """

    metadata: Sequence[Metadata]
    detector: Detector | None = None
    samples: int = 4
    seed: int = 0
    overall: ClassVar[str | None] = "overall"
    digits: ClassVar[int] = 3

    def __post_init__(self) -> None:
        if self.detector is not None:
            require_known(self.metadata, self.detector)

    def shots(self, folder: Path) -> list[Shot]:
        """Return the pictures to make, and write each prompt's `metadata.jsonl`.

        Raises:
            DataError: the folder cannot be written, or holds other prompts.
        """
        found = []
        for i, entry in enumerate(self.metadata):
            place = folder / f"{i:05d}"
            make_folder(place / "samples")
            beside = place / "metadata.jsonl"
            if not beside.is_file():
                part = beside.with_name(f"{beside.name}.{os.getpid()}.part")  # every process writes it
                part.write_text(json.dumps(entry))
                part.replace(beside)
            elif json.loads(beside.read_text()) != json.loads(json.dumps(entry)):
                raise DataError(f"expected {folder} to be empty or to hold these prompts, {beside} differs")
            for k in range(self.samples):
                record = folder / "records" / place.name / f"{k:04d}.json"
                noise = derive_seed(self.seed, k, i) % 2**31
                found.append(Shot(place / "samples" / f"{k:04d}.png", record, entry["prompt"], noise))
        return found

    def score(
        self, folder: Path, results: Path, only: Sequence[Shot] | None = None, *, progress: bool = True
    ) -> list[Score]:
        """Score the pictures of a folder and write `results.jsonl` in GenEval's keys.

        Args:
            folder: in GenEval's layout.
            results: folder for `results.jsonl`.
            only: the pictures that count; all if None.
            progress: show a progress bar.

        Raises:
            DataError: no detector, nothing to score, or a picture that cannot be read.
        """
        if self.detector is None:
            raise DataError("expected a detector to score pictures with, got none")
        found = find_samples(folder)
        if only is not None:
            wanted = {shot.file for shot in only}
            found = [sample for sample in found if sample.file in wanted]
        require_known([sample.metadata for sample in found], self.detector)
        lines = [result(s, self.detector) for s in tqdm(found, "score", disable=not progress, leave=False)]
        make_folder(results)
        (results / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return [
            Score(sample.prompt, line["tag"], float(line["correct"]))
            for sample, line in zip(found, lines, strict=True)
        ]


def result(sample: Sample, detector: Detector) -> dict[str, Any]:
    """Score a picture.

    Returns:
        A line of `results.jsonl`: filename, tag, prompt, correct, reason, metadata, details.

    Raises:
        DataError: the picture cannot be read.
    """
    try:
        with Image.open(sample.file) as opened:
            picture = ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, UnidentifiedImageError, SyntaxError) as error:
        raise DataError(f"expected a picture, could not read {sample.file}: {error}") from error
    found, entry = detector(picture), sample.metadata
    reason = check(found, entry, lambda objects: detector.colours(picture, objects))
    kept = select(found, counting=entry["tag"] == "counting")
    return {
        "filename": str(sample.file),
        "tag": entry["tag"],
        "prompt": entry["prompt"],
        "correct": reason is None,
        "reason": reason or "",
        "metadata": json.dumps(entry),
        "details": json.dumps({name: [[*d.box, d.confidence] for d in objects] for name, objects in kept.items()}),
    }
