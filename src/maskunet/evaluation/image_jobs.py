"""Images that are generated once: divided over processes, and resumed after an interruption.

Every image has a record (JSON) of its prompt, seed and settings. Both are written under another name and renamed, the
record last, so an image with its record is complete.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..errors import DataError, SettingError
from ..files import make_folder, read_object, save_text
from ..images import save_png, to_pil
from ..sampling.generation import Side


@dataclass(frozen=True)
class ImageJob:
    """An image to generate.

    Args:
        file: path of the image, a PNG.
        record: path of its prompt, seed and settings, a JSON file.
        prompt: its prompt.
        seed: seed of its noise.
    """

    file: Path
    record: Path
    prompt: str
    seed: int

    @property
    def is_done(self) -> bool:
        """Whether the image and its record exist."""
        return self.record.is_file() and self.file.is_file()


@dataclass(frozen=True)
class BenchmarkImage:
    """An image of a benchmark to score.

    Args:
        file: path of the image.
        prompt: number of its prompt in the benchmark.
        task: task or category of the prompt.
        text: the prompt.
        metadata: what the image must show, for benchmarks that state it.
    """

    file: Path
    prompt: int
    task: str
    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


def generate_missing(
    side: Side,
    jobs: Sequence[ImageJob],
    *,
    settings: Mapping[str, Any],
    batch_size: int = 8,
    rank: int = 0,
    world: int = 1,
    progress: bool = True,
) -> int:
    """Generate the images that do not exist yet.

    Args:
        side: generates images from prompts and seeds.
        jobs: all images, of all processes.
        settings: settings of the side, written into each record.
        batch_size: images per call of `side`, >= 1.
        rank: this process generates the images i with i mod world = rank.
        world: number of processes.
        progress: show a progress bar.

    Returns:
        How many images this process generated.

    Raises:
        DataError: a file cannot be written, or an image of other prompts or settings exists.
        SettingError: the batch size is out of range.
    """
    if batch_size < 1:
        raise SettingError(f"expected batch_size to be an integer >= 1, got {batch_size}")
    missing = []
    for job in jobs[rank::world]:
        record = {"prompt": job.prompt, "seed": job.seed} | dict(settings)
        if job.record.is_file():
            _require_same(job, record)
        if not job.is_done:
            missing.append((job, record))
    for folder in {path.parent for job, _ in missing for path in (job.file, job.record)}:
        make_folder(folder)
    for start in tqdm(range(0, len(missing), batch_size), desc="generate", disable=not progress or rank > 0):
        batch = missing[start : start + batch_size]
        images = to_pil(side([job.prompt for job, _ in batch], [job.seed for job, _ in batch]))
        for (job, record), image in zip(batch, images, strict=True):
            save_png(image, job.file)
            save_text(json.dumps(record), job.record)
    return len(missing)


def _require_same(job: ImageJob, record: Mapping[str, Any]) -> None:
    saved = read_object(job.record, "an image's record")
    expected = json.loads(json.dumps(record))  # JSON turns tuples into lists
    if saved != expected:
        names = sorted(k for k in expected.keys() | saved.keys() if expected.get(k) != saved.get(k))
        raise DataError(
            f"expected {job.file.parent} to be empty or to hold images of these prompts and settings, "
            f"{', '.join(names)} differ in {job.record.name}; choose another folder"
        )


def wait_for_images(jobs: Sequence[ImageJob], patience_s: float = 600.0) -> None:
    """Wait until all images exist, while other processes generate them.

    Args:
        jobs: the images.
        patience_s: longest time without a new image, in seconds.

    Raises:
        DataError: no image was added for that long.
    """
    last_count, since = len(jobs) + 1, time.monotonic()
    while missing := sum(not job.is_done for job in jobs):
        if missing != last_count:
            last_count, since = missing, time.monotonic()
        elif time.monotonic() - since > patience_s:
            raise DataError(
                f"expected {len(jobs)} images, {len(jobs) - missing} came and no more; run the command again"
            )
        time.sleep(0.2)


def images_of_jobs(images: Iterable[BenchmarkImage], jobs: Sequence[ImageJob] | None) -> list[BenchmarkImage]:
    """Return the images that belong to some jobs.

    Args:
        images: images of a folder.
        jobs: the jobs; all images are returned if None.
    """
    if jobs is None:
        return list(images)
    files = {job.file for job in jobs}
    return [image for image in images if image.file in files]
