"""Train the bundled masker `shapes-masker`, and select its settings on validation loss.

    python -m benchmarks.shapes_masker --sweep           # short runs of every variant; ten minutes on two cores
    python -m benchmarks.shapes_masker --train FOLDER    # the run of the bundled masker; a quarter of an hour

Variants are compared by the paired gain in validation loss (base minus masked; same images, noise and timesteps), which
shows an effect long before images do. No test prompt is used. The sweep writes docs/results/shapes_masker_sweep.{json,md};
docs/results/shapes_masker.md describes how the bundled one was trained.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.records import RESULTS, machine_line, markdown_table, save_record
from maskunet import zoo
from maskunet.allocator import keep_freed_memory
from maskunet.machine import machine
from maskunet.maskers import MaskGenerator, MaskGeneratorConfig
from maskunet.training import Run, TrainConfig, train
from maskunet.zoo.dataset import TRAIN_SAMPLES, encode_world

#: Settings of the bundled masker.
MASK = MaskGeneratorConfig(initial_logit=0.3)
TRAIN = TrainConfig(
    max_train_steps=550,
    train_batch_size=64,
    learning_rate=1e-3,
    gumbel=False,
    snr_gamma=5.0,
    validation_steps=110,
    checkpointing_steps=110,
)
HELD_OUT = 1024  # scenes in the validation loss
SWEEP_SAMPLES = 4000  # training images of the sweep
VARIANTS = {
    "logit 2, Gumbel, 2e-3": (MaskGeneratorConfig(initial_logit=2.0), {"gumbel": True, "learning_rate": 2e-3}),
    "logit 1, threshold, 2e-3": (MaskGeneratorConfig(initial_logit=1.0), {"gumbel": False, "learning_rate": 2e-3}),
    "logit 0.3, threshold, 1e-3": (MaskGeneratorConfig(initial_logit=0.3), {"gumbel": False, "learning_rate": 1e-3}),
}


def train_masker(
    pipe: Any,
    folder: Path,
    *,
    mask: MaskGeneratorConfig = MASK,
    config: TrainConfig = TRAIN,
    samples: int = TRAIN_SAMPLES,
) -> Run:
    """Train a masker on the diffusion loss of the bundled pipeline's own domain.

    Args:
        pipe: the bundled pipeline.
        folder: folder of the run; the same call resumes there.
        mask: settings of the masker.
        config: settings of the training.
        samples: number of training images.
    """
    data, validation = encode_world(pipe, "shapes", train_samples=samples, held_out_samples=HELD_OUT, progress=True)
    masker = MaskGenerator.for_unet(pipe.unet, mask, seed=config.seed)
    return train(pipe, masker, data, config, folder, validation=validation)


def sweep(pipe: Any, steps: int) -> dict[str, Any]:
    """Train every variant and return the record."""
    variants = []
    for name, (mask, changes) in VARIANTS.items():
        config = replace(TRAIN, max_train_steps=steps, validation_steps=50, lr_warmup_steps=10, **changes)
        with tempfile.TemporaryDirectory() as folder:
            run = train_masker(pipe, Path(folder), mask=mask, config=config, samples=SWEEP_SAMPLES)
        curve = [entry for entry in run.stats if "gain" in entry]
        variants.append({"variant": name, "mask": asdict(mask), "train": asdict(config), "curve": curve})
    return {"variants": variants, "machine": machine()}


def table(record: dict[str, Any]) -> str:
    """Return the sweep as Markdown."""
    rows = [
        [v["variant"], c["step"], f"{1e5 * c['gain']:+.1f} ± {1e5 * c['gain_ci95']:.1f}", f"{c['density']:.4f}"]
        for v in record["variants"]
        for c in v["curve"]
    ]
    return (
        f"Paired gain in validation loss on {HELD_OUT} held-out images, 95 % intervals; "
        f"{machine_line(record['machine'])}.\n\n" + markdown_table(["variant", "step", "gain, 1e-5", "density"], rows)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", action="store_true", help="train every variant for a few steps")
    parser.add_argument("--steps", type=int, default=100, help="steps per variant of the sweep")
    parser.add_argument("--train", type=Path, metavar="FOLDER", help="train the bundled masker in this folder")
    args = parser.parse_args()
    if not args.sweep and args.train is None:
        parser.error("expected --sweep or --train FOLDER")
    keep_freed_memory()
    torch.set_num_threads(2)
    pipe = zoo.load("shapes")
    if args.sweep:
        record = sweep(pipe, args.steps)
        print(table(record))
        save_record(record, RESULTS / "shapes_masker_sweep.json", "Settings of the bundled masker", table(record))
    if args.train is not None:
        print(train_masker(pipe, args.train).stats[-1])


if __name__ == "__main__":
    main()
