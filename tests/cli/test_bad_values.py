"""Every flag of every command with a bad value: exit code 2, one line on stderr, and nothing written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from maskunet.cli.main import app
from maskunet.errors import DataError

Run = Callable[..., tuple[int, str, str]]

PROMPTS = "<a file of prompts>"
#: Words that each command needs, so that only the flag under test is wrong.
WORDS: dict[str, list[object]] = {
    "demo": [],
    "generate": ["--prompt", "a"],
    "search": ["--prompt", "a"],
    "train": ["--model", "shapes", "--dataset", "shapes", "--max-train-samples", 2, "--validation-samples", 2],
    "evaluate": ["--model", "shapes", "--features", "shapes", "--prompts-file", PROMPTS],
    "benchmark geneval": ["--model", "shapes"],
    "benchmark t2i-compbench": ["--model", "shapes", "--prompts-file", PROMPTS],
    "info": ["shapes"],
    "export": ["--model", "shapes", "--masker", "shapes-masker", "--prompt", "a", "--output", "out"],
    "convert": ["x.pth", "y.pth", "--model", "shapes", "--output", "out"],
    "ui": [],
    "zoo train": [],
    "zoo sample": [],
    "analyze random": [],
    **{f"analyze {name}": ["--masker", "shapes-masker"] for name in ("density", "masks", "weights", "emergence")},
    "analyze samples": ["--masker", "shapes-masker"],
    "analyze all": ["--masker", "shapes-masker"],
}
#: Their arguments are missing files, which is what the error is about.
QUIET = ("convert", "benchmark t2i-compbench")
#: Any text is a value of these: what is wrong is that there is none.
FREE_TEXT = (
    "--negative-prompt",
    "--image-column",
    "--caption-column",
    "--split",
    "--validation-prompts",
)
#: A bad value of each flag that takes text or a path.
TEXTS = {
    "--annotations": "missing.json",
    "--cache-dir": "/dev/null/x",
    "--clip": "./missing",
    "--compose": "sum",
    "--config": "./missing",
    "--dataset": "./missing",
    "--detector": "./missing",
    "--device": "toaster",
    "--dtype": "int8",
    "--features": "vgg",
    "--halves": "neither",
    "--host": "256.0.0.1",
    "--hub-model-id": "not a name",
    "--images": "/dev/null/x/y",
    "--iterations": "2,x",
    "--keep": "worst",
    "--layer": "missing",
    "--lr-scheduler": "nope",
    "--masker": "missing/at/all",
    "--masker-kind": "dense",
    "--method": "dora",
    "--mixed-precision": "fp8",
    "--model": "missing/at/all",
    "--objective": "beauty",
    "--output": "/dev/null/x/y",
    "--preset": "best",
    "--preview-decoder": "./missing",
    "--prompt": " ",
    "--prompts-file": "missing.txt",
    "--protocol": "coco",
    "--reference": "missing",
    "--report-to": "nope",
    "--resume-from-checkpoint": "missing",
    "--reward": "beauty",
    "--revision": "missing",
    "--run": "missing",
    "--scheduler": "nope",
    "--sides": "best",
    "--targets": "(",
    "--unet": "./missing",
    "--variant": "missing",
    "--vqa": "./missing",
    "--work": "/dev/null/x",
}


def commands(group: Any = None, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in (group or typer.main.get_command(app)).commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


def bad_words(parameter: Any) -> list[str]:
    """Words that give a parameter a bad value."""
    flag = parameter.opts[0]
    if parameter.param_type_name == "argument":
        return []  # see test_arguments
    if parameter.is_flag:
        return [f"{flag}=maybe"]
    if flag in FREE_TEXT:
        return [flag]
    if flag in TEXTS:
        return [flag, TEXTS[flag]]
    kind = parameter.metavar or str(parameter.type_descriptor.annotation)
    assert any(word in kind.lower() for word in ("int", "number", "float")), f"{flag} needs an entry in TEXTS"
    return [flag, "-1" if "int" in kind.lower() else "nan"]


def cases() -> list[Any]:
    return list(each_case())


def each_case() -> Iterator[Any]:
    for name, command in commands():
        for parameter in command.params:
            if words := bad_words(parameter):
                yield pytest.param(name, words, id=f"{name} {' '.join(words)}")


def test_every_command_has_words() -> None:
    assert {name for name, _ in commands()} == WORDS.keys()


def require_one_line(result: tuple[int, str, str], folder: Path) -> str:
    code, out, err = result
    assert code == 2, out + err
    assert err.startswith("error: ")
    assert len(err) > len("error: ") + 8
    assert err.count("\n") == 1, err
    assert list(folder.iterdir()) == []
    return err


@pytest.fixture(scope="session")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("prompts") / "color_val.txt"
    file.write_text("a red circle\n")
    return file


@pytest.fixture(scope="session")
def two_prompts(prompts: Path) -> Path:
    file = prompts.with_name("two.txt")
    file.write_text("a red circle\na blue star\n")
    return file


@pytest.mark.parametrize(("command", "words"), cases())
def test_a_bad_value_ends_in_one_line(run: Run, tmp_path: Path, prompts: Path, command: str, words: list[str]) -> None:
    base = [prompts if word == PROMPTS else word for word in WORDS[command]]
    err = require_one_line(run(*command.split(), *base, *words), tmp_path)
    flag, *value = words
    names = [flag.split("=")[0], flag.removeprefix("--").replace("-", "_"), *(text.strip() for text in value)]
    assert command in QUIET or "/dev/null" in err or any(name in err for name in names if name), err


@pytest.mark.parametrize(
    "words",
    [
        "train --tau 0",
        "train --masker-kind paper --no_timestep --no_sample",
        "export --prompt a --output out.ckpt",
        "export --prompts-file missing.txt",
        "export --strength 1.1",
        "train --lr_scheduler nope",
        "train --adam_beta1 2",
        "train --adam_epsilon -1",
        "train --initial_logit nan",
        "train --masker-rank 1",
        "train --masker-kind paper --masker-rank 4",
        "train --draft-steps 20",
        "train --learning-rate x",
        "train --method lora --hub-model-id a/b",
        "train --dropout 1",
        "train --reward shapes",
        "train --objective reward --model missing/model",
        "train --mixed-precision fp16 --device cpu",
        "generate --steps 1000000",
        "generate --steps 2.5",
        "generate --seed -1",
        "generate --seed 18446744073709551616",
        "generate --guidance-scale inf",
        "generate --compare-base",
        "generate --masker shapes-masker --compose majority",
        "generate --masker a=shapes-masker --masker a=shapes-masker",
        "generate --masker a= --masker shapes-masker",
        "generate --masker a=missing/at/all --masker shapes-masker",
        "search --seed -1",
        "search --seed 18446744073709551616",
        "search --guidance-scale nan",
        "search --guidance-scale 1e26",
        "search --guidance-rescale 1.5",
        "search --steps 1000",
        "search --seed 9223372036854775807 --prompt b",
        "generate --guidance-rescale nan",
        "generate --guidance-rescale 1.5",
        "generate --steps 1000",
        "generate --height 12 --steps 1",
        "generate --seed 9223372036854775807 --prompt b",
        "demo --steps 1000",
        "demo --seed 9223372036854775807",
        "demo --guidance-scale nan",
        "evaluate --steps 1000",
        "evaluate --guidance-scale nan",
        "evaluate --seed 9223372036854775807 --prompts-file two.txt",
        "benchmark geneval --steps 1000",
        "benchmark geneval --guidance-scale nan",
        "benchmark geneval --guidance-scale 1e26",
        "benchmark geneval --guidance-rescale -1",
        "analyze random --steps 1000",
        "analyze random --seed 9223372036854775807",
        "analyze random --guidance-scale nan",
        "zoo sample --steps 1000",
        "zoo sample --seed 9223372036854775807",
        "train --validation-prompts x --validation-num-inference-steps 1000",
        "train --objective reward --reward-num-inference-steps 1000",
        "search --candidates 2147483646",
        "search --height 100000000",
        "train --rank 100000000000000000000000000",
        "train --resolution 100000000000000000000000000",
        "search --steps 1000000",
        "search --candidates 0",
        "search --iterations 1,-2",
        "search --learning-rate inf",
        "search --model missing/model",
        "benchmark geneval --sides search+masker",
        "benchmark geneval --sides base,base",
        "benchmark geneval --reward shapes",
        "benchmark geneval --images x",
        "benchmark geneval --vqa x/y",
        "benchmark mmlu",
        "analyze random --rate 2",
        "analyze random --run x",
        "analyze nothing",
        "evaluate --protocol coco2017-5k",
        "evaluate --limit 0",
        "zoo",
        "zoo train --share 0",
        "paint",
        "generate --nonsense",
        "generate extra",
    ],
)
def test_known_mistakes(run: Run, tmp_path: Path, prompts: Path, two_prompts: Path, words: str) -> None:
    command = next((name for name in WORDS if words.startswith(f"{name} ")), "")
    base = [prompts if word == PROMPTS else word for word in WORDS.get(command, [])]
    options = [two_prompts if word == "two.txt" else word for word in words.removeprefix(command).split()]
    require_one_line(run(*command.split(), *base, *options), tmp_path)


@pytest.mark.parametrize("command", ["analyze random", "generate", "search", "train", "zoo sample"])
@pytest.mark.parametrize("value", ["foo", "triton"])
def test_operators_that_cannot_run(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, value: str
) -> None:
    monkeypatch.setenv("MASKUNET_OPERATORS", value)
    result = run(*command.split(), *WORDS[command], "--device", "cpu")
    assert "MASKUNET_OPERATORS" in require_one_line(result, tmp_path)


@pytest.mark.parametrize(
    "words",
    [
        ["generate", "--prompt", "a", "--output", ""],
        ["generate", "--prompt", "a", "--output="],
        ["demo", "--output_dir", ""],
        ["demo", "--count", "1" * 26],
        ["zoo", "sample", "--output", ""],
        ["zoo", "sample", "--count", "1" * 26],
        ["train", *WORDS["train"], "--cache-dir="],
        ["search", "--prompt", "a", "--preview-decoder", ""],
        ["generate", "--prompt", "a", "--model", "x" * 5000],
        ["generate", "--prompt", "a", "--masker", "x" * 5000],
        ["train", "--model", "shapes", "--dataset", "x" * 5000],
        ["evaluate", "--images", "x" * 5000],
    ],
)
def test_empty_paths_and_names_too_long(run: Run, tmp_path: Path, words: list[object]) -> None:
    require_one_line(run(*words), tmp_path)


@pytest.mark.parametrize("words", ["info missing", "convert missing.pth missing.pth --model shapes --output out"])
def test_arguments(run: Run, tmp_path: Path, words: str) -> None:
    require_one_line(run(*words.split()), tmp_path)


@pytest.mark.parametrize("command", ["train", "convert", "info"])
def test_missing_options_and_arguments(run: Run, tmp_path: Path, command: str) -> None:
    assert "missing" in require_one_line(run(command), tmp_path)


def test_an_error_without_a_message_names_itself(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise DataError("")

    monkeypatch.setattr("maskunet.pipelines.load_pipeline", fail)
    assert "DataError" in require_one_line(run("generate", "--prompt", "a"), tmp_path)
