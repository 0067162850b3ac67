"""Captions of COCO: one per image, repeatable."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from maskunet.errors import DataError
from maskunet.evaluation.coco import coco_captions


def test_captions_are_one_per_image_and_repeatable(tmp_path: Path) -> None:
    entries = [{"id": i, "image_id": i // 5, "caption": f"image {i // 5}\n, {i % 5}"} for i in range(100)]
    path = tmp_path / "captions.json"
    path.write_text(json.dumps({"annotations": entries}))
    captions = coco_captions(path, 12)
    assert captions == coco_captions(path, 12) != coco_captions(path, 12, seed=1)
    assert len({c.split(",")[0] for c in captions}) == 12
    with pytest.raises(DataError, match="at least 21"):
        coco_captions(path, 21)
    path.write_text("{}")
    with pytest.raises(DataError, match="annotations"):
        coco_captions(path, 1)
