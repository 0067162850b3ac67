"""Train a masker on a folder of images with captions; without --images, on images drawn here.

python examples/train_on_a_folder.py --model path/or/hub-id --images folder-with-metadata.jsonl
"""

import argparse
import json
from pathlib import Path

import maskunet as mu
from maskunet.images import to_pil
from maskunet.pipelines import load_pipeline
from maskunet.shapes.drawing import draw
from maskunet.shapes.scenes import training_scene


def draw_images(folder: Path, count: int) -> Path:
    """Write images and a metadata.jsonl, one line per image: the layout that `mu.train` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    scenes = [training_scene(i) for i in range(count)]
    for i, image in enumerate(to_pil(draw(scenes))):
        image.save(folder / f"{i}.png")
    lines = [json.dumps({"file_name": f"{i}.png", "text": scene.caption}) for i, scene in enumerate(scenes)]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="shapes", help="a diffusers folder, a .safetensors file or a hub id")
    parser.add_argument("--images", type=Path, help="folder with metadata.jsonl (file_name, text)")
    parser.add_argument("--steps", type=int, default=200, help="training steps")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--output", type=Path, default=Path("runs/folder"))
    args = parser.parse_args()

    pipe = load_pipeline(args.model)
    images = args.images or draw_images(args.output / "images", count=256)
    config = mu.TrainConfig(
        max_train_steps=args.steps, train_batch_size=args.batch_size, gradient_accumulation_steps=1
    )
    run = mu.train(pipe, mu.LowRankMasker.for_unet(pipe.unet, seed=0), images, config, args.output / "run")

    print(f"gain over the base {run.stats[-1]['gain']:.2e}, density {run.stats[-1]['density']:.4f}")
    print(f"python examples/generate.py --model {args.model} --masker {run.folder / 'masker'}")


if __name__ == "__main__":
    main()
