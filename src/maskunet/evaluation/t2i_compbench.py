"""T2I-CompBench: attribute binding of colour, texture and shape by BLIP-VQA, with the original's prompts and files.

    <folder>/<category>/samples/<prompt>_<number>.png    images, numbered through the category
    <folder>/<category>/records/<number>.json            prompt, seed and settings of each image
    <folder>/<category>/annotation_blip/                 vqa_result.json, blip_vqa_score.txt

The score of an image is the product, over the noun phrases of its prompt, of the probability that the answer to
"<phrase>?" is yes.

Reference: Huang et al., "T2I-CompBench: A Comprehensive Benchmark for Open-world Compositional Text-to-image Generation",
NeurIPS 2023.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tqdm.auto import tqdm

from ..errors import DataError, first_line
from ..files import make_folder, save_text
from ..relaxation import derive_seed
from .blip_vqa import Vqa
from .image_jobs import BenchmarkImage, ImageJob, images_of_jobs
from .image_reader import read_image
from .scores import Score

CATEGORIES = ("color", "texture", "shape")
_MAX_PHRASES = 8
_SPACY_MODEL = "en_core_web_sm"

#: Splits a prompt into its noun phrases.
Phrases = Callable[[str], Sequence[str]]


def spacy_phrases() -> Phrases:
    """Return the original's splitter: spaCy's noun chunks.

    Raises:
        DataError: spaCy or its English model is missing.
    """
    try:
        import spacy

        nlp = spacy.load(_SPACY_MODEL)
    except (ImportError, OSError) as error:
        raise DataError(
            "expected spaCy with its small English model, to split prompts into noun phrases; "
            f"pip install 'maskunet[t2i-compbench]' && python -m spacy download {_SPACY_MODEL}"
        ) from error
    return lambda prompt: [str(chunk) for chunk in nlp(prompt).noun_chunks]


def read_prompts(path: Path) -> dict[str, list[str]]:
    """Return prompts by category.

    Args:
        path: a file like `color_val.txt`, or a folder with those of colour, texture and shape.

    Raises:
        DataError: no such file, an empty one, or a prompt that a file name cannot hold.
    """
    files = [path]
    if path.is_dir():
        files = [path / f"{name}_val.txt" for name in CATEGORIES if (path / f"{name}_val.txt").is_file()]
        if not files:
            raise DataError(f"expected {', '.join(f'{c}_val.txt' for c in CATEGORIES)} in the folder {path}")
    by_category = {}
    for file in files:
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"expected a text file with one prompt per line, could not read {file}: {first_line(error)}"
            ) from error
        prompts = [prompt for line in lines if (prompt := line.split("\t")[0].strip())]
        by_category[file.stem.removesuffix("_val")] = check_prompts(prompts, str(file))
    return by_category


def check_prompts(prompts: Sequence[str], source: str) -> list[str]:
    """Return prompts that T2I-CompBench's file names can hold.

    Args:
        prompts: prompts of one category.
        source: where they come from, for errors.

    Raises:
        DataError: there are none, or one cannot be part of a file name.
    """
    if isinstance(prompts, str) or not prompts:
        raise DataError(f"expected one prompt per line in {source}, it has none")
    for prompt in prompts:
        if re.search(r"[_/\0]", prompt) or len(prompt.encode()) > 200:
            raise DataError(
                "expected prompts that T2I-CompBench's file names can hold (no slash or underscore, at most 200 bytes), "
                f"got {prompt!r} in {source}"
            )
    return list(prompts)


@dataclass(frozen=True)
class T2ICompBench:
    """T2I-CompBench's attribute binding on prompts by category.

    Args:
        prompts: prompts by category.
        vqa: answers questions about images; None if images are only generated.
        phrases: splits prompts into noun phrases; None if images are only generated.
        images_per_prompt: images per prompt.
        seed: the noise of image k of prompt i of a category depends on this, the category, k and i.
        batch_size: images per call of `vqa`.
    """

    prompts: Mapping[str, Sequence[str]]
    vqa: Vqa | None = None
    phrases: Phrases | None = None
    images_per_prompt: int = 10
    seed: int = 0
    batch_size: int = 16
    overall: ClassVar[str | None] = None
    digits: ClassVar[int] = 4

    def jobs(self, folder: Path) -> list[ImageJob]:
        """Return the images to generate.

        Args:
            folder: the side's folder.
        """
        jobs = []
        for category, prompts in self.prompts.items():
            for i, prompt in enumerate(prompts):
                for k in range(self.images_per_prompt):
                    number = f"{i * self.images_per_prompt + k:06d}"
                    file = folder / category / "samples" / f"{prompt}_{number}.png"
                    record = folder / category / "records" / f"{number}.json"
                    jobs.append(ImageJob(file, record, prompt, derive_seed(self.seed, category, k, i) % 2**31))
        return jobs

    def find_images(self, folder: Path) -> list[BenchmarkImage]:
        """Return the images of a folder in the original's layout, by category and number.

        Args:
            folder: with one folder per category, or itself a category's, with `samples`.

        Raises:
            DataError: there are none, or a file name lacks prompt or number.
        """
        folders = [folder] if (folder / "samples").is_dir() else [p.parent for p in folder.glob("*/samples")]
        order = {name: i for i, name in enumerate(CATEGORIES)}
        images = []
        prompts: dict[tuple[str, str], int] = {}
        for path in sorted(folders, key=lambda p: (order.get(p.name, len(order)), p.name)):
            category, files = path.resolve().name, []
            for file in path.glob("samples/*.png"):
                prompt, number = file.stem.partition("_")[0], file.stem.rpartition("_")[2]
                if "_" not in file.stem or not number.isdecimal():
                    raise DataError(f"expected images named <prompt>_<number>.png, got {file}")
                files.append((int(number), prompt, file))
            for _, prompt, file in sorted(files):
                index = prompts.setdefault((category, prompt), len(prompts))
                images.append(BenchmarkImage(file, index, category, prompt))
        if not images:
            raise DataError(f"expected T2I-CompBench's folders (samples/<prompt>_000000.png) in {folder}")
        return images

    def score(
        self, folder: Path, results: Path, jobs: Sequence[ImageJob] | None = None, *, progress: bool = True
    ) -> list[Score]:
        """Score the images of a folder and write each category's `annotation_blip`, as the original does.

        Args:
            folder: in the original's layout.
            results: folder for `<category>/annotation_blip`.
            jobs: the images that count; all if None.
            progress: show a progress bar.

        Raises:
            DataError: networks or images are missing, or an image cannot be read.
        """
        if self.vqa is None or self.phrases is None:
            raise DataError("expected a BLIP for questions and a splitter of prompts to score images with, got none")
        images = images_of_jobs(self.find_images(folder), jobs)
        values = score_by_vqa(images, self.vqa, self.phrases, batch_size=self.batch_size, progress=progress)
        for category in dict.fromkeys(image.task for image in images):
            of_category = [v for image, v in zip(images, values, strict=True) if image.task == category]
            annotations = results / category / "annotation_blip"
            make_folder(annotations)
            lines = [{"question_id": i, "answer": f"{v:.4f}"} for i, v in enumerate(of_category)]
            save_text(json.dumps(lines), annotations / "vqa_result.json")
            mean = sum(of_category) / len(of_category)
            save_text(f"BLIP-VQA score:{mean}", annotations / "blip_vqa_score.txt")
        # Numbered after the selection: other images in one side's folder must not shift the numbers.
        numbers: dict[tuple[str, str], int] = {}
        return [
            Score(numbers.setdefault((image.task, image.text), len(numbers)), image.task, value)
            for image, value in zip(images, values, strict=True)
        ]


def score_by_vqa(
    images: Sequence[BenchmarkImage], vqa: Vqa, phrases: Phrases, *, batch_size: int = 16, progress: bool = True
) -> list[float]:
    """Score images by BLIP-VQA; as in the original, probabilities and products are rounded to four digits.

    Args:
        images: the images.
        vqa: answers questions about images.
        phrases: splits prompts; at most eight phrases of a prompt count.
        batch_size: images per call of `vqa`.
        progress: show a progress bar.

    Returns:
        One score in [0, 1] per image.

    Raises:
        DataError: an image cannot be read.
    """
    texts = dict.fromkeys(image.text for image in images)
    questions = {text: [f"{phrase}?" for phrase in list(phrases(text))[:_MAX_PHRASES]] for text in texts}
    scores: list[float] = []
    for start in tqdm(range(0, len(images), batch_size), "score", disable=not progress, leave=False):
        batch = images[start : start + batch_size]
        answers = vqa([read_image(image.file) for image in batch], [questions[image.text] for image in batch])
        scores += [round(math.prod(round(p, 4) for p in probabilities), 4) for probabilities in answers]
    return scores
