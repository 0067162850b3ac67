"""Tables of Table 1 and the ablations: means over training seeds with intervals, the paper's figures in a column."""

from __future__ import annotations

from statistics import mean
from typing import Any

from benchmarks.records import markdown_table, mean_text, share_text, without_chance_task
from maskunet.shapes.vocabulary import TASKS

#: The paper's Table 1 on COCO 2017 (FID-5k).
PAPER_TABLE1 = {
    "base": 23.39,
    "full": 24.45,
    "full + dropout": 26.56,
    "LoRA": 23.18,
    "masks": 21.88,
    "random masks": 270.22,
}
#: The paper's ablations on COCO 2017 (FID-5k).
PAPER_ABLATIONS = {
    "decoder attention, both": 21.88,
    "without timestep": 22.30,
    "without sample": 22.14,
    "decoder attention + conv": 21.79,
    "all layers": 22.10,
}
#: What every table of overall accuracy says.
CHANCE_NOTE = "The model ignores words of relation, so overall is also shown without position, which is at chance."


def seeds_text(config: dict[str, Any]) -> str:
    """Return the number of training seeds as text.

    Args:
        config: a study's config as JSON values.
    """
    return "one training seed" if config["seeds"] == 1 else f"{config['seeds']} training seeds"


def value_at(cell: dict[str, Any], *keys: str) -> float:
    """Return a figure of a cell.

    Args:
        cell: a study's cell.
        keys: the path to the figure.
    """
    value: Any = cell
    for key in keys:
        value = value[key]
    return float(value)


def table1_markdown(record: dict[str, Any]) -> str:
    """Return the test table, its differences to the base, accuracy by task, and every rate on the validation split.

    Args:
        record: from `run_table1`.
    """
    config, cells = record["config"], record["cells"]

    def values(name: str, *keys: str) -> list[float]:
        return [value_at(cell, *keys) for cell in cells[name]]

    def difference(name: str, *keys: str) -> str | None:
        pairs = zip(values(name, *keys), values("base", *keys), strict=True)
        return None if name == "base" else mean_text([a - b for a, b in pairs])

    def row(name: str) -> list[Any]:
        cell = cells[name][0]
        return [
            name,
            f"{cell['learning_rate']:g}" if "learning_rate" in cell else None,
            None if cell.get("density") is None else f"{mean(values(name, 'density')):.4f}",
            mean_text(values(name, "fid", "clip")),
            difference(name, "fid", "clip"),
            mean_text(values(name, "fid", "vae")),
            share_text(values(name, "accuracy", "overall")),
            difference(name, "accuracy", "overall"),
            share_text([without_chance_task(cell["accuracy"]) for cell in cells[name]]),
            mean_text(values(name, "clip_score")),
            f"{PAPER_TABLE1[name]:.2f}" if name in PAPER_TABLE1 else None,
        ]

    columns = [
        "method",
        "rate",
        "density",
        "FID, CLIP",
        "minus base",
        "FID, VAE",
        "overall",
        "minus base",
        "without position",
        "CLIP score",
    ]
    rates = [
        [
            name,
            rate,
            f"{cell['art_gain']:.4f}",
            None if cell["density"] is None else f"{cell['density']:.4f}",
            f"{cell['fid']['clip']:.2f}",
            f"{cell['accuracy']['overall']:.3f}",
        ]
        for name, by_rate in record["rates"].items()
        for rate, cell in by_rate.items()
    ]
    by_task = [[name, *(share_text(values(name, "accuracy", task)) for task in TASKS)] for name in cells]
    return "\n\n".join(
        [
            f"{config['seeds']} training seeds, {config['prompts'] * config['images_per_prompt']} images per cell, "
            f"{config['steps']} steps of 64 on `shapes-art`, evaluated zero-shot on `shapes` "
            f"({config['num_inference_steps']} DPM-Solver++ steps, guidance {config['guidance_scale']:g}). Brackets: "
            "Student's 95 % interval over training seeds, for these prompts; differences are paired by seed and noise; no "
            f"brackets: all seeds agree. {CHANCE_NOTE} Learning rates are selected by FID on the validation split.",
            markdown_table([*columns, "FID in the paper"], [row(name) for name in cells]),
            markdown_table(["method", *TASKS], by_task),
            "Every learning rate (seed 0, validation split): the gain on held-out art images, in diffusion loss, and its "
            "cost on the first domain.",
            markdown_table(["method", "rate", "art gain", "density", "FID, CLIP", "overall"], rates),
        ]
    )


def ablations_markdown(record: dict[str, Any]) -> str:
    """Return the ablations as a table, and density and FID during training as a second one.

    Args:
        record: from `run_ablations`.
    """
    config = record["config"]
    rows = []
    for name, cells in record["cells"].items():
        masks: list[Any] = [None, None, None]
        if name != "base":
            gain = mean_text([c["art_gain"] for c in cells])
            masks = [f"{cells[0]['parameters'] / 1e6:.2f} M", gain, mean_text([c["density"] for c in cells])]
        rows.append(
            [
                name,
                *masks,
                mean_text([c["fid"]["clip"] for c in cells]),
                mean_text([c["fid"]["vae"] for c in cells]),
                share_text([c["accuracy"]["overall"] for c in cells]),
                share_text([without_chance_task(c["accuracy"]) for c in cells]),
                f"{PAPER_ABLATIONS[name]:.2f}" if name in PAPER_ABLATIONS else None,
            ]
        )
    snapshots = [
        [
            s["step"],
            f"{1.0 if s['density'] is None else s['density']:.4f}",
            f"{s['fid']['clip']:.3f}",
            f"{s['accuracy']['overall']:.3f}",
        ]
        for s in record["snapshots"]
    ]
    columns = ["masks", "parameters", "art gain", "density", "FID, CLIP", "FID, VAE", "overall", "without position"]
    columns.append("FID in the paper")
    seeds = seeds_text(config)
    return "\n\n".join(
        [
            f"{seeds[0].upper()}{seeds[1:]}, {config['prompts']} images per cell, {config['steps']} steps of 64 on "
            f"`shapes-art` at learning rate {config['learning_rate']:g} from logits {config['initial_logit']:g}. Brackets: "
            "Student's 95 % interval over training seeds, for these prompts; a row without brackets has one seed. "
            f"{CHANCE_NOTE}",
            markdown_table(columns, rows),
            "During training (seed 0):",
            markdown_table(["step", "density", "FID, CLIP", "overall"], snapshots),
        ]
    )
