"""The ablations in miniature: they show the machinery and no result."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from benchmarks.mask_forms import FORMS, FormConfig, FormMasker, build_form
from benchmarks.studies import ablations, world
from benchmarks.studies.ablations import REFERENCE, VARIANTS, AblationConfig, run_ablations
from benchmarks.studies.plots import plot_ablations
from benchmarks.studies.report import ablations_markdown
from benchmarks.studies.trial import shortened
from PIL import Image

from maskunet.errors import SettingError
from maskunet.maskers import MaskGenerator, MaskGeneratorConfig
from maskunet.training import TrainConfig

CONFIG = AblationConfig(
    seeds=1, steps=2, train_samples=6, prompts=6, reference_images=64, snapshots=2, num_inference_steps=1
)
NAMES = ["without timestep", "towards density 0.97", "low rank, r = 2"]


def never(*args: object, **options: object) -> None:
    raise AssertionError("a finished cell was measured again")


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world, "HELD_OUT", 4)
        patch.setattr(world, "DENSITY_PROMPTS", 2)
        patch.setattr(world, "TrainConfig", partial(TrainConfig, train_batch_size=2))
        folder = tmp_path_factory.mktemp("ablations")
        finished = run_ablations(folder, CONFIG, names=NAMES)
        patch.setattr(world, "train", never)
        patch.setattr(world.World, "measure", never)
        assert run_ablations(folder, CONFIG, names=NAMES) == finished
        (run,) = folder.glob("*/runs/towards-density-0.97-0")
    return finished | {"density_log": (run / "stats.jsonl").read_text()}


def test_unknown_variants_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="without timestep"):
        run_ablations(tmp_path, CONFIG, names=["without sampel"])


def test_variants_differ_as_their_names_say(record: dict[str, Any]) -> None:
    cells = record["cells"]
    assert set(cells) == {"base", REFERENCE, *NAMES}
    assert all(len(of_variant) == CONFIG.seeds for of_variant in cells.values())
    count = {name: of_variant[0]["parameters"] for name, of_variant in cells.items() if name != "base"}
    assert count["low rank, r = 2"] < count["without timestep"] < count[REFERENCE]


def test_a_target_density_reaches_the_training(record: dict[str, Any]) -> None:
    assert "expected_density" in record["density_log"]


def test_an_expensive_variant_has_fewer_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []

    def finished(path: Path, run: object) -> dict[str, object]:
        measured.append(path.stem)
        return {"art_gain": 0.0, "fid": {"clip": 1.0}, "curve": []}

    for name in ("load_base", "World", "ArtRuns"):
        monkeypatch.setattr(ablations, name, lambda *_: None)
    monkeypatch.setattr(ablations, "cached_cell", finished)
    cells = run_ablations(tmp_path, replace(CONFIG, seeds=3), names=["all layers"])["cells"]
    assert {name: len(of_variant) for name, of_variant in cells.items()} == {"base": 3, REFERENCE: 3, "all layers": 1}
    assert "all-layers-0" in measured
    assert "all-layers-1" not in measured


def test_snapshots_follow_training(record: dict[str, Any]) -> None:
    snapshots = record["snapshots"]
    assert [s["step"] for s in snapshots] == [0, 1, 2]
    base, reference = record["cells"]["base"][0], record["cells"][REFERENCE][0]
    assert snapshots[0]["fid"] == base["fid"]
    assert snapshots[0]["density"] is None
    assert snapshots[-1]["fid"] == reference["fid"]
    assert snapshots[-1]["density"] == reference["density"]
    text = ablations_markdown(record)
    assert all(f"| {name} |" in text for name in NAMES)
    assert "| 22.30 |" in text


def test_figures_are_reproducible(record: dict[str, Any], tmp_path: Path) -> None:
    written = plot_ablations(record, tmp_path / "a")
    assert [p.name for p in written] == ["ablations_variants.png", "ablations_training.png"]
    repeated = plot_ablations(json.loads(json.dumps(record)), tmp_path / "b")
    assert [p.read_bytes() for p in repeated] == [p.read_bytes() for p in written]
    with Image.open(written[0]) as image:
        assert image.width > 1000


def test_a_shortened_study_keeps_its_other_settings() -> None:
    config = AblationConfig()
    assert shortened(config, 1.0) is config
    short = shortened(config, 0.01)
    assert (short.seeds, short.steps, short.prompts, short.reference_images) == (2, 2, 12, 64)
    assert (short.learning_rate, short.num_inference_steps) == (config.learning_rate, config.num_inference_steps)


@pytest.mark.parametrize("form", FORMS)
def test_other_forms_start_at_the_initial_logit_and_save(form: str, pipe: Any, tmp_path: Path) -> None:
    config = FormConfig(form=form, heads=2, rank=4, hidden=8, initial_logit=0.5)
    masker = build_form(pipe.unet, config, seed=0)
    assert isinstance(masker, FormMasker)
    masker.save_pretrained(tmp_path / form)
    loaded = FormMasker.from_pretrained(tmp_path / form, pipe.unet)
    assert all((a == b).all() for a, b in zip(masker.parameters(), loaded.parameters(), strict=True))


def test_the_library_builds_the_other_rows(pipe: Any) -> None:
    assert isinstance(build_form(pipe.unet, MaskGeneratorConfig(), seed=0), MaskGenerator)
    assert set(VARIANTS) > {REFERENCE, *NAMES}
