"""`maskunet train` as a user runs it: flags of diffusers' scripts, a masker that the other commands take, clear errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import maskunet as mu
from maskunet.maskers import Masker
from maskunet.shapes.drawing import draw
from maskunet.shapes.scenes import training_scene

Run = Callable[..., tuple[int, str, str]]

SMALL = ["--max-train-steps", 2, "--train-batch-size", 2, "--validation-samples", 4, "--device", "cpu"]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    scenes = [training_scene(i) for i in range(6)]
    with (folder / "metadata.jsonl").open("w") as file:
        for i, (scene, image) in enumerate(zip(scenes, draw(scenes), strict=True)):
            Image.fromarray((image * 255).byte().permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
            file.write(json.dumps({"file_name": f"{i}.png", "text": scene.caption}) + "\n")
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:100])
    return folder


def test_bundled_world_gives_a_masker_that_the_other_commands_take(run: Run, tmp_path: Path) -> None:
    words = ["train", "--model", "shapes", "--dataset", "shapes-art", "--max-train-samples", 8, *SMALL]
    code, out, err = run(*words, "--initial-logit", 0.5, "--output", "run")
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
    assert run(*words, "--initial-logit", 0.5, "--output", "run")[0] == 0
    assert (tmp_path / "run" / "checkpoint-000002" / "state.pt").stat().st_mtime_ns == stamp


def test_the_papers_generator_by_name(run: Run, tmp_path: Path) -> None:
    words = ["train", "--model", "shapes", "--dataset", "shapes-art", "--max-train-samples", 8, *SMALL]
    code, _, err = run(*words, "--masker-kind", "paper", "--output", "run")
    assert code == 0, err
    assert isinstance(mu.load(tmp_path / "run" / "masker"), mu.MaskGenerator)
    code, _, err = run(*words, "--masker-kind", "dense", "--output", "other")
    assert code == 2
    assert "expected --masker-kind to be one of low-rank, paper, got 'dense'" in err


@pytest.mark.parametrize(("method", "made"), [("lora", "lora/pytorch_lora_weights.safetensors"), ("full", "unet")])
def test_folder_of_images_with_a_broken_one(
    run: Run,
    images: Path,
    tmp_path: Path,
    method: str,
    made: str,
) -> None:
    words = ["train", "--pretrained-model-name-or-path", "shapes", "--train-data-dir", images, *SMALL]
    code, _, err = run(*words, "--method", method, "--output", "run", "--rank", 2)
    assert code == 0, err
    assert (tmp_path / "run" / made).exists()
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["method"]["name"] == method
    assert config["data"]["num_samples"] == 5


def test_reward_as_the_objective(run: Run, tmp_path: Path) -> None:
    words = ["train", "--model", "shapes", "--dataset", "shapes", "--max-train-samples", 4, *SMALL]
    options = ["--reward-batch-size", 2, "--reward-num-inference-steps", 2, "--validation-rewards", 2]
    code, out, err = run(*words, "--objective", "reward", *options, "--output", "run")
    assert code == 0, err
    assert "reward gain on held-out captions" in out
    (last,) = [json.loads(line) for line in (tmp_path / "run" / "stats.jsonl").read_text().splitlines()][-1:]
    assert {"reward", "reward_gain", "gain", "density"} <= set(last)


def test_validation_images_repeat(run: Run, tmp_path: Path) -> None:
    words = ["train", "--model", "shapes", "--dataset", "shapes", "--max-train-samples", 4, *SMALL]
    words += ["--validation-prompts", "a red circle", "--validation-prompts", "a blue star"]
    words += ["--validation-num-inference-steps", 2, "--validation-guidance-scale", 4, "--validation-steps", 1]
    drawn = []
    for name in ("a", "b"):
        code, _, err = run(*words, "--initial-logit", -0.36, "--output", name)
        assert code == 0, err
        files = sorted((tmp_path / name / "validation").rglob("*.png"))
        assert [f"{f.parent.name}/{f.name}" for f in files] == [
            f"step-00000{step}/0000{i}.png" for step in (1, 2) for i in (0, 1)
        ]
        drawn.append([f.read_bytes() for f in files])
    assert drawn[0] == drawn[1]
    assert drawn[0][0] != drawn[0][1]


def test_what_is_pushed_carries_the_recipe(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed = []
    monkeypatch.setattr(Masker, "push_to_hub", lambda self, name, **options: pushed.append((name, options)))
    words = ["train", "--model", "shapes", "--dataset", "shapes-art", "--max-train-samples", 4, *SMALL]
    code, _, err = run(*words, "--output", "run", "--hub-model-id", "me/masks")
    assert code == 0, err
    ((name, options),) = pushed
    assert name == "me/masks"
    assert (options["base_model"], options["dataset"]) == ("shapes", "shapes-art")
    assert options["recipe"]["Data set"] == "shapes-art, 4 images"


def test_dry_run_prints_the_cost_and_writes_nothing(run: Run, tmp_path: Path) -> None:
    words = ["train", "--model", "shapes", "--dataset", "shapes", "--max-train-samples", 4, *SMALL, "--dry-run"]
    code, out, err = run(*words, "--output", "run")
    assert code == 0, err
    assert "s per step" in out
    assert "2 steps take about" in out
    assert not (tmp_path / "run").exists()


def test_diffusers_spellings(run: Run, images: Path, tmp_path: Path) -> None:
    words = ["train", "--pretrained_model_name_or_path", "shapes", "--train_data_dir", images, "--output_dir", "run"]
    words += ["--max_train_steps", 1, "--train_batch_size", 2, "--lr_warmup_steps", 0, "--validation_samples", 0]
    code, out, err = run(*words, "--device", "cpu", "--no_timestep", "--mixed_precision", "no", "--seed", 3)
    assert code == 0, err
    assert out == "masker in run\n"
    masker = mu.load(tmp_path / "run" / "masker")
    assert (masker.config.use_timestep, masker.config.use_sample) == (False, True)


def test_defaults_of_the_bundled_model(run: Run, tmp_path: Path) -> None:
    words = ["train", "--model", "shapes", "--dataset", "shapes", "--max-train-samples", 4, "--device", "cpu"]
    code, _, err = run(*words, "--max-train-steps", 1, "--validation-samples", 2, "--output", "run")
    assert code == 0, err
    config = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert (config["train_batch_size"], config["gradient_accumulation_steps"]) == (64, 1)
    assert config["validation_guidance_scale"] == 4.0
    masker = mu.load(tmp_path / "run" / "masker")
    assert masker.config == mu.LowRankMaskerConfig()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dataset", "./nowhere"], "nowhere"),
        (["--dataset", "shapes", "--method", "dora"], "mask, mask+lora, lora, full"),
        (["--dataset", "shapes", "--learning-rate", "-1"], "expected --learning-rate to be a finite number > 0"),
        (["--dataset", "shapes", "--targets", "nothing"], "nothing"),
        (["--dataset", "shapes", "--mixed-precision", "fp16", "--max-train-samples", 4], "on a CPU"),
        (["--dataset", "shapes", "--method", "lora", "--hub-model-id", "a/b"], "mask or mask"),
    ],
)
def test_mistakes_are_one_line(run: Run, tmp_path: Path, words: list[str], message: str) -> None:
    code, _, err = run("train", "--model", "shapes", *SMALL, *words, "--output", "run")
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()
