"""GenEval: its prompts, folder layout, rules and result files, with any detector.

    <folder>/00000/metadata.jsonl          the prompt's line of evaluation_metadata.jsonl
    <folder>/00000/samples/0000.png ...    its images
    <folder>/records/00000/0000.json ...   prompt, seed and settings of each image

GenEval's own scorer reads such a folder, and `score` reads a folder that GenEval's own script generated.

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

from tqdm.auto import tqdm

from ..errors import DataError, first_line
from ..files import make_folder, read_object, save_text
from ..metrics.geneval_rules import check, select
from ..relaxation import derive_seed
from .detectors import Detector
from .image_jobs import BenchmarkImage, ImageJob, images_of_jobs
from .image_reader import read_image
from .scores import Score

Metadata = Mapping[str, Any]


def read_metadata(path: Path) -> list[Metadata]:
    """Return the entries of an `evaluation_metadata.jsonl`.

    Args:
        path: the file.

    Raises:
        DataError: it cannot be read, or an entry lacks GenEval's keys.
    """
    try:
        entries = [json.loads(line) for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(
            f"expected GenEval's evaluation_metadata.jsonl, could not read {path}: {first_line(error)}"
        ) from error
    return check_metadata(entries, str(path))


def check_metadata(entries: Sequence[Any], source: str) -> list[Metadata]:
    """Return entries whose keys are GenEval's.

    Args:
        entries: one entry per prompt.
        source: where they come from, for errors.

    Raises:
        DataError: there are none, or one lacks GenEval's keys.
    """
    if not entries:
        raise DataError(f"expected one prompt per line in {source}, it has none")
    for number, entry in enumerate(entries, 1):
        if problem := _problem(entry):
            raise DataError(f"expected GenEval's keys in line {number} of {source}: {problem}")
    return list(entries)


def _problem(entry: Any) -> str | None:
    """Return why an entry cannot be scored; None if it can."""
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("prompt", "tag")):
        return "'tag' and 'prompt' are required"
    include, exclude = entry.get("include", []), entry.get("exclude", [])
    if not isinstance(include, list) or not isinstance(exclude, list) or not include + exclude:
        return "'include' or 'exclude' must list the required objects"
    for i, need in enumerate([*include, *exclude]):
        is_complete = isinstance(need, dict) and isinstance(need.get("class"), str)
        if not is_complete or not isinstance(need.get("count"), int):
            return "each requirement must have a 'class' and a 'count'"
        if "position" in need:
            position = need["position"]
            if not isinstance(position, list) or len(position) != 2 or position[1] not in range(min(i, len(include))):
                return "'position' must be a relation and the number of an earlier requirement"
    return None


def require_known(metadata: Sequence[Metadata], detector: Detector) -> None:
    """Refuse prompts with classes or colours that the detector does not know.

    Args:
        metadata: entries of the prompts.
        detector: the detector.

    Raises:
        DataError: a class or a colour is unknown.
    """
    needs = [need for entry in metadata for need in (*entry.get("include", ()), *entry.get("exclude", ()))]
    for kind, required, known in (
        ("classes", {need["class"] for need in needs}, detector.names),
        ("colours", {need["color"] for need in needs if "color" in need}, detector.palette),
    ):
        if unknown := sorted(required - set(known)):
            raise DataError(
                f"expected {kind} that {type(detector).__name__} knows ({', '.join(sorted(known))}), the prompts require "
                f"{', '.join(unknown)}"
            )


@dataclass(frozen=True)
class GenEval:
    """GenEval on a list of prompts.

    Args:
        metadata: the prompts and what their images must show.
        detector: finds objects and names their colours; None if images are only generated.
        images_per_prompt: images per prompt.
        seed: the noise of image k of prompt i depends on this, k and i, and on nothing else.

    Raises:
        DataError: prompts with classes or colours that the detector does not know.
    """

    metadata: Sequence[Metadata]
    detector: Detector | None = None
    images_per_prompt: int = 4
    seed: int = 0
    overall: ClassVar[str | None] = "overall"
    digits: ClassVar[int] = 3

    def __post_init__(self) -> None:
        if self.detector is not None:
            require_known(self.metadata, self.detector)

    def jobs(self, folder: Path) -> list[ImageJob]:
        """Return the images to generate, and write each prompt's `metadata.jsonl`.

        Args:
            folder: the side's folder.

        Raises:
            DataError: the folder cannot be written, or holds other prompts.
        """
        jobs = []
        for i, entry in enumerate(self.metadata):
            prompt_folder = folder / f"{i:05d}"
            make_folder(prompt_folder / "samples")
            path = prompt_folder / "metadata.jsonl"
            if not path.is_file():
                # Every process writes this file, so each needs a temporary name of its own.
                part = path.with_name(f"{path.name}.{os.getpid()}.part")
                part.write_text(json.dumps(entry))
                part.replace(path)
            elif read_object(path, "a prompt's metadata") != json.loads(json.dumps(entry)):
                raise DataError(f"expected {folder} to be empty or to hold these prompts, {path} differs")
            for k in range(self.images_per_prompt):
                file, record = f"samples/{k:04d}.png", folder / "records" / prompt_folder.name / f"{k:04d}.json"
                noise_seed = derive_seed(self.seed, k, i) % 2**31
                jobs.append(ImageJob(prompt_folder / file, record, entry["prompt"], noise_seed))
        return jobs

    def find_images(self, folder: Path) -> list[BenchmarkImage]:
        """Return the images of a folder in GenEval's layout.

        Args:
            folder: the side's folder.

        Raises:
            DataError: there are none, or metadata cannot be read.
        """
        images = []
        for prompt_folder in sorted(p for p in folder.glob("*") if p.is_dir() and p.name.isdigit()):
            (entry, *_) = read_metadata(prompt_folder / "metadata.jsonl")
            files = sorted(f for f in prompt_folder.glob("samples/*") if re.fullmatch(r"\d+\.png", f.name))
            number = int(prompt_folder.name)
            images += [BenchmarkImage(file, number, entry["tag"], entry["prompt"], entry) for file in files]
        if not images:
            raise DataError(f"expected GenEval's folders (00000/metadata.jsonl, 00000/samples/0000.png) in {folder}")
        return images

    def score(
        self, folder: Path, results: Path, jobs: Sequence[ImageJob] | None = None, *, progress: bool = True
    ) -> list[Score]:
        """Score the images of a folder and write `results.jsonl` in GenEval's format.

        Args:
            folder: in GenEval's layout.
            results: folder for `results.jsonl`.
            jobs: the images that count; all if None.
            progress: show a progress bar.

        Raises:
            DataError: there is no detector, nothing to score, or an image cannot be read.
        """
        if self.detector is None:
            raise DataError("expected a detector to score images with, got none")
        images = images_of_jobs(self.find_images(folder), jobs)
        require_known([image.metadata for image in images], self.detector)
        lines = [
            score_image(image, self.detector) for image in tqdm(images, "score", disable=not progress, leave=False)
        ]
        make_folder(results)
        save_text("".join(json.dumps(line) + "\n" for line in lines), results / "results.jsonl")
        return [Score(i.prompt, i.task, float(line["correct"]), i.text) for i, line in zip(images, lines, strict=True)]


def score_image(image: BenchmarkImage, detector: Detector) -> dict[str, Any]:
    """Score one image.

    Args:
        image: the image and its requirements.
        detector: finds objects and names their colours.

    Returns:
        One line of `results.jsonl`: filename, tag, prompt, correct, reason, metadata, details.

    Raises:
        DataError: the image cannot be read.
    """
    pixels = read_image(image.file)
    detections = detector(pixels)
    reason = check(detections, image.metadata, lambda objects: detector.colours(pixels, objects))
    counted = select(detections, counting=image.task == "counting")
    return {
        "filename": str(image.file),
        "tag": image.task,
        "prompt": image.text,
        "correct": reason is None,
        "reason": reason or "",
        "metadata": json.dumps(image.metadata),
        "details": json.dumps({name: [[*d.box, d.confidence] for d in objects] for name, objects in counted.items()}),
    }
