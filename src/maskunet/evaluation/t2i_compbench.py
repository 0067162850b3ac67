"""T2I-CompBench: attribute binding of colour, texture and shape, by BLIP-VQA; the original's prompts, files and figures.

    <folder>/<category>/samples/<prompt>_<number>.png    pictures, numbered through the category
    <folder>/<category>/records/<number>.json            prompt, seed and settings of each
    <folder>/<category>/annotation_blip/                 vqa_result.json, blip_vqa_score.txt

A picture's score is the product, over the noun phrases of its prompt, of the probability that "<phrase>?" is answered
with "yes".

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

from PIL import Image, UnidentifiedImageError
from tqdm.auto import tqdm

from ..errors import DataError
from ..files import make_folder
from ..relaxation import derive_seed
from .blip_vqa import Vqa
from .image_jobs import Shot
from .scores import Score

CATEGORIES = ("color", "texture", "shape")
_MOST_PHRASES = 8
_SPACY_MODEL = "en_core_web_sm"

#: Splits a prompt into the noun phrases that are asked for.
Phrases = Callable[[str], Sequence[str]]


@dataclass(frozen=True)
class Sample:
    """A picture to score: its file, category, number in the category, and prompt."""

    file: Path
    category: str
    number: int
    prompt: str


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
        DataError: no such file, an empty one, or a prompt that cannot stand in a file's name.
    """
    files = [path]
    if path.is_dir():
        files = [path / f"{name}_val.txt" for name in CATEGORIES if (path / f"{name}_val.txt").is_file()]
        if not files:
            raise DataError(f"expected {', '.join(f'{c}_val.txt' for c in CATEGORIES)} in the folder {path}")
    found = {}
    for file in files:
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"expected a text file with a prompt a line, could not read {file}: {error}") from error
        prompts = [prompt for line in lines if (prompt := line.split("\t")[0].strip())]
        if not prompts:
            raise DataError(f"expected a prompt a line in {file}, it has none")
        for prompt in prompts:
            if re.search(r"[_/\0]", prompt) or len(prompt.encode()) > 200:
                raise DataError(
                    "expected prompts that T2I-CompBench's file names can hold (no slash or underscore, at most 200 bytes), "
                    f"got {prompt!r} in {file}"
                )
        found[file.stem.removesuffix("_val")] = prompts
    return found


def find_samples(folder: Path) -> list[Sample]:
    """Return the pictures of a folder in the original's layout, by category and number.

    Args:
        folder: with a folder for each category, or itself a category's, with `samples`.

    Raises:
        DataError: there are none, or a name that holds no prompt and number.
    """
    places = [folder] if (folder / "samples").is_dir() else [p.parent for p in folder.glob("*/samples")]
    order = {name: i for i, name in enumerate(CATEGORIES)}
    found: list[Sample] = []
    for place in sorted(places, key=lambda p: (order.get(p.name, len(order)), p.name)):
        for file in place.glob("samples/*.png"):
            prompt, number = file.stem.partition("_")[0], file.stem.rpartition("_")[2]
            if "_" not in file.stem or not number.isdecimal():
                raise DataError(f"expected pictures named <prompt>_<number>.png, got {file}")
            found.append(Sample(file, place.resolve().name, int(number), prompt))
    if not found:
        raise DataError(f"expected T2I-CompBench's folders (samples/<prompt>_000000.png) in {folder}")
    rank = {name: i for i, name in enumerate(dict.fromkeys(s.category for s in found))}
    return sorted(found, key=lambda s: (rank[s.category], s.number))


@dataclass(frozen=True)
class T2ICompBench:
    """T2I-CompBench's attribute binding on given prompts.

    Args:
        prompts: prompts by category.
        vqa: answers questions about pictures; None where pictures are made and not scored.
        phrases: splits prompts into noun phrases; None likewise.
        samples: pictures a prompt.
        seed: the noise of picture k of prompt i of a category depends on this, the category, k and i.
        batch_size: pictures a call of `vqa`.
    """

    prompts: Mapping[str, Sequence[str]]
    vqa: Vqa | None = None
    phrases: Phrases | None = None
    samples: int = 10
    seed: int = 0
    batch_size: int = 16
    overall: ClassVar[str | None] = None
    digits: ClassVar[int] = 4

    def shots(self, folder: Path) -> list[Shot]:
        """Return the pictures to make."""
        found = []
        for category, prompts in self.prompts.items():
            place = folder / category
            for i, prompt in enumerate(prompts):
                for k in range(self.samples):
                    number = f"{i * self.samples + k:06d}"
                    noise = derive_seed(self.seed, category, k, i) % 2**31
                    file = place / "samples" / f"{prompt}_{number}.png"
                    found.append(Shot(file, place / "records" / f"{number}.json", prompt, noise))
        return found

    def score(
        self, folder: Path, results: Path, only: Sequence[Shot] | None = None, *, progress: bool = True
    ) -> list[Score]:
        """Score the pictures of a folder and write each category's `annotation_blip`, as the original does.

        Args:
            folder: in the original's layout.
            results: folder for `<category>/annotation_blip`.
            only: the pictures that count; all if None.
            progress: show a progress bar.

        Raises:
            DataError: nothing to score with, nothing to score, or a picture that cannot be read.
        """
        if self.vqa is None or self.phrases is None:
            raise DataError("expected a BLIP for questions and a splitter of prompts to score pictures with")
        samples = find_samples(folder)
        if only is not None:
            wanted = {shot.file for shot in only}
            samples = [sample for sample in samples if sample.file in wanted]
        values = score(samples, self.vqa, self.phrases, batch_size=self.batch_size, progress=progress)
        for category in dict.fromkeys(s.category for s in samples):
            of_one = [v for s, v in zip(samples, values, strict=True) if s.category == category]
            place = results / category / "annotation_blip"
            make_folder(place)
            lines = [{"question_id": i, "answer": f"{v:.4f}"} for i, v in enumerate(of_one)]
            (place / "vqa_result.json").write_text(json.dumps(lines))
            (place / "blip_vqa_score.txt").write_text(f"BLIP-VQA score:{sum(of_one) / len(of_one)}")
        numbers: dict[tuple[str, str], int] = {}
        return [
            Score(numbers.setdefault((s.category, s.prompt), len(numbers)), s.category, value)
            for s, value in zip(samples, values, strict=True)
        ]


def score(
    samples: Sequence[Sample], vqa: Vqa, phrases: Phrases, *, batch_size: int = 16, progress: bool = True
) -> list[float]:
    """Score pictures by BLIP-VQA; as in the original, probabilities and products are rounded to four digits.

    Args:
        samples: the pictures.
        vqa: answers questions about pictures.
        phrases: splits prompts; at most eight phrases of a prompt are asked for.
        batch_size: pictures a call of `vqa`.
        progress: show a progress bar.

    Returns:
        A score in [0, 1] for each.

    Raises:
        DataError: a picture that cannot be read.
    """
    asked = {prompt: list(phrases(prompt))[:_MOST_PHRASES] for prompt in dict.fromkeys(s.prompt for s in samples)}
    found: list[float] = []
    for start in tqdm(range(0, len(samples), batch_size), "score", disable=not progress, leave=False):
        chunk = samples[start : start + batch_size]
        answers = vqa([_read(s.file) for s in chunk], [[f"{phrase}?" for phrase in asked[s.prompt]] for s in chunk])
        found += [round(math.prod(round(p, 4) for p in of_one), 4) for of_one in answers]
    return found


def _read(file: Path) -> Image.Image:
    try:
        with Image.open(file) as opened:
            return opened.convert("RGB")
    except (OSError, UnidentifiedImageError, SyntaxError) as error:
        raise DataError(f"expected a picture, could not read {file}: {error}") from error
