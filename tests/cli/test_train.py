"""`maskunet train` as a user runs it: flags of diffusers' scripts, a masker that the other commands take, clear errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
from PIL import Image

import maskunet as mu
from maskunet.maskers import Masker
from maskunet.shapes.drawing import draw
from maskunet.shapes.scenes import training_scene

Run = Callable[..., tuple[int, str, str]]

SMALL = ["--max_train_steps", 2, "--train_batch_size", 2, "--validation_samples", 4, "--device", "cpu"]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    scenes = [training_scene(i) for i in range(6)]
    with (folder / "metadata.jsonl").open("w") as file:
        for i, (scene, picture) in enumerate(zip(scenes, draw(scenes), strict=True)):
            Image.fromarray((picture * 255).byte().permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
            file.write(json.dumps({"file_name": f"{i}.png", "text": scene.caption}) + "\n")
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:100])
    return folder


def test_bundled_world_gives_a_masker_that_the_other_commands_take(run: Run, tmp_path: Path) -> None:
    words = ["train", "--model", "shapes", "--dataset", "shapes-art", "--max_train_samples", 8, *SMALL]
    code, out, err = run(*words, "--initial_logit", 0.5, "--output_dir", "run")
    assert code == 0, err
    assert "masker in run" in out
    assert "validation gain" in out
    masker = mu.load(tmp_path / "run" / "masker")
    assert isinstance(masker, mu.LowRankMasker)
    assert masker.config.rank == 16
    assert masker.config.initial_logit == 0.5
    code, out, err = run("info", "run/masker")
    assert code == 0, err
    assert "340,992" in out or "weights" in out
    generate = ["generate", "--prompt", "a red circle", "--masker", "run/masker", "--steps", 2, "--device", "cpu"]
    code, out, err = run(*generate, "--output", "out")
    assert code == 0, err
    assert len(list((tmp_path / "out").glob("*.png"))) == 1
    # The same command again has nothing left to do.
    stamp = (tmp_path / "run" / "checkpoint-000002" / "state.pt").stat().st_mtime_ns
    assert run(*words, "--initial_logit", 0.5, "--output_dir", "run")[0] == 0
    assert (tmp_path / "run" / "checkpoint-000002" / "state.pt").stat().st_mtime_ns == stamp


def test_the_papers_generator_by_name(run: Run, tmp_path: Path) -> None:
    words = ["train", "--model", "shapes", "--dataset", "shapes-art", "--max_train_samples", 8, *SMALL]
    code, _, err = run(*words, "--masker", "paper", "--output_dir", "run")
    assert code == 0, err
    assert isinstance(mu.load(tmp_path / "run" / "masker"), mu.MaskGenerator)
    code, _, err = run(*words, "--masker", "dense", "--output_dir", "other")
    assert code == 2
    assert "expected masker low-rank or paper, got 'dense'" in err


@pytest.mark.parametrize(("method", "made"), [("lora", "lora/pytorch_lora_weights.safetensors"), ("full", "unet")])
def test_folder_of_pictures_with_a_broken_one(
    run: Run,
    pictures: Path,
    tmp_path: Path,
    method: str,
    made: str,
) -> None:
    words = ["train", "--pretrained_model_name_or_path", "shapes", "--train_data_dir", pictures, *SMALL]
    code, _, err = run(*words, "--method", method, "--output_dir", "run", "--rank", 2)
    assert code == 0, err
    assert (tmp_path / "run" / made).exists()
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["method"]["name"] == method
    assert config["data"]["num_samples"] == 5


def test_reward_as_the_objective(run: Run, tmp_path: Path) -> None:
    words = ["train", "--model", "shapes", "--dataset", "shapes", "--max_train_samples", 4, *SMALL]
    own = ["--reward_batch_size", 2, "--reward_num_inference_steps", 2, "--validation_rewards", 2]
    code, _, err = run(*words, "--objective", "reward", *own, "--output_dir", "run")
    assert code == 2
    assert "reward" in err
    code, out, err = run(*words, "--objective", "reward", "--reward", "shapes", *own, "--output_dir", "run")
    assert code == 0, err
    assert "reward gain on held-out captions" in out
    (last,) = [json.loads(line) for line in (tmp_path / "run" / "stats.jsonl").read_text().splitlines()][-1:]
    assert {"reward", "reward_gain", "gain", "density"} <= set(last)


def test_validation_pictures_repeat(run: Run, tmp_path: Path) -> None:
    words = ["train", "--model", "shapes", "--dataset", "shapes", "--max_train_samples", 4, *SMALL]
    words += ["--validation_prompts", "a red circle", "--validation_prompts", "a blue star"]
    words += ["--validation_num_inference_steps", 2, "--validation_guidance_scale", 4, "--validation_steps", 1]
    drawn = []
    for name in ("a", "b"):
        code, _, err = run(*words, "--initial_logit", -0.36, "--output_dir", name)
        assert code == 0, err
        files = sorted((tmp_path / name / "validation").rglob("*.png"))
        assert [f"{f.parent.name}/{f.name}" for f in files] == [
            f"step-00000{step}/{i}.png" for step in (1, 2) for i in (0, 1)
        ]
        drawn.append([f.read_bytes() for f in files])
    assert drawn[0] == drawn[1]
    assert drawn[0][0] != drawn[0][1]


def test_what_is_pushed_carries_the_recipe(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed = []
    monkeypatch.setattr(Masker, "push_to_hub", lambda self, name, **options: pushed.append((name, options)))
    words = ["train", "--model", "shapes", "--dataset", "shapes-art", "--max_train_samples", 4, *SMALL]
    code, _, err = run(*words, "--output_dir", "run", "--hub_model_id", "me/masks")
    assert code == 0, err
    ((name, options),) = pushed
    assert name == "me/masks"
    assert (options["base_model"], options["dataset"]) == ("shapes", "shapes-art")
    assert options["recipe"]["Data set"] == "shapes-art, 4 pictures"


def test_dry_run_says_what_it_costs_and_writes_nothing(run: Run, tmp_path: Path) -> None:
    words = ["train", "--model", "shapes", "--dataset", "shapes", "--max_train_samples", 4, *SMALL, "--dry-run"]
    code, out, err = run(*words, "--output_dir", "run")
    assert code == 0, err
    assert "s a step" in out
    assert "2 steps take about" in out
    assert not (tmp_path / "run").exists()


def test_every_setting_has_a_flag_and_a_text(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "240")  # a narrow terminal cuts names
    from maskunet.cli.train import _help

    assert {f.name for f in fields(mu.TrainConfig)} == _help(mu.TrainConfig).keys()
    code, out, _ = run("train", "--help")
    assert code == 0
    for field in fields(mu.TrainConfig):
        assert f"--{field.name}" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dataset", "./nowhere"], "nowhere"),
        (["--dataset", "shapes", "--method", "dora"], "mask, lora, full"),
        (["--dataset", "shapes", "--learning_rate", "-1"], "learning_rate above 0"),
        (["--dataset", "shapes", "--targets", "nothing"], "nothing"),
        (["--dataset", "shapes", "--mixed_precision", "fp16", "--max_train_samples", 4], "on a CPU"),
        (["--dataset", "shapes", "--method", "lora", "--hub_model_id", "a/b"], "mask or mask"),
    ],
)
def test_mistakes_are_one_line(run: Run, tmp_path: Path, words: list[str], message: str) -> None:
    code, _, err = run("train", "--model", "shapes", *SMALL, *words, "--output_dir", "run")
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()
