"""Captions of COCO for evaluation; `published` has the protocols."""

from __future__ import annotations

import json
import random
from pathlib import Path

from ..errors import DataError


def coco_captions(annotations: Path, count: int, seed: int = 0) -> list[str]:
    """Return captions of COCO: one for each of `count` random images.

    Args:
        annotations: COCO's caption annotations, a JSON file.
        count: number of captions.
        seed: seed of the choice.

    Raises:
        DataError: not such a file, or it has too few images.
    """
    try:
        entries = json.loads(annotations.read_text())["annotations"]
        by_image: dict[int, list[str]] = {}
        for entry in sorted(entries, key=lambda e: e["id"]):
            by_image.setdefault(entry["image_id"], []).append(" ".join(str(entry["caption"]).split()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"expected COCO's caption annotations, could not read {annotations}: {error!r}") from error
    if len(by_image) < count:
        raise DataError(f"expected captions of at least {count} images in {annotations}, got {len(by_image)}")
    rng = random.Random(seed)
    return [rng.choice(by_image[i]) for i in rng.sample(sorted(by_image), count)]
