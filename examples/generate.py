"""Generate images without and with masks from the same noise.

python examples/generate.py --model path/or/hub-id --masker my-masker --prompt "a red circle"
"""

import argparse
from pathlib import Path

import maskunet as mu
from maskunet.pipelines import load_pipeline


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="shapes", help="a diffusers folder, a .safetensors file or a hub id")
    parser.add_argument("--masker", default="shapes-masker", help="a masker's folder or hub id")
    parser.add_argument("--prompt", nargs="+", default=["a red circle and a blue star", "four red triangles"])
    parser.add_argument("--steps", type=int, default=25, help="denoising steps")
    parser.add_argument("--guidance-scale", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=0, help="image i starts from the noise of seed + i")
    parser.add_argument("--output", type=Path, default=Path("images"))
    args = parser.parse_args()

    pipe = load_pipeline(args.model)
    mu.attach(pipe, args.masker)
    options = {"seeds": args.seed, "num_inference_steps": args.steps, "guidance_scale": args.guidance_scale}

    with mu.disabled(pipe):  # the base model
        mu.sampling.generate(pipe, args.prompt, **options).save(args.output / "base")
    with mu.record(pipe, keep="density") as trace:
        mu.sampling.generate(pipe, args.prompt, **options).save(args.output / "masked")

    density = trace.overall_density()
    print(f"kept weights: {density[0]:.1%} at the first step, {density[-1]:.1%} at the last; images in {args.output}")


if __name__ == "__main__":
    main()
