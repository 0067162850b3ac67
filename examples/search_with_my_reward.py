"""Search noises and masks for prompts by a reward of your own: here, how red an image is.

python examples/search_with_my_reward.py --model path/or/hub-id --prompt "a circle"
"""

import argparse
from pathlib import Path

import maskunet as mu
from maskunet.pipelines import load_pipeline


def redness(images, prompts):
    """Return one number per image (B, 3, H, W) in [0, 1]: higher is better, and gradients must flow through it."""
    red, green, blue = images.unbind(1)
    return (red - (green + blue) / 2).mean((1, 2))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="shapes", help="a diffusers folder, a .safetensors file or a hub id")
    parser.add_argument("--prompt", nargs="+", default=["a circle", "two stars"])
    parser.add_argument("--preset", default="default", help="default, masks, fast or paper")
    parser.add_argument("--steps", type=int, default=15, help="denoising steps")
    parser.add_argument("--guidance-scale", type=float, default=4.0)
    parser.add_argument("--output", type=Path, default=Path("found-red"))
    args = parser.parse_args()

    pipe = load_pipeline(args.model)
    options = {"num_inference_steps": args.steps, "guidance_scale": args.guidance_scale}
    result = mu.search(pipe, args.prompt, redness, mu.SearchConfig.preset(args.preset, **options))

    for prompt, base, reward in zip(args.prompt, result.base_rewards, result.rewards, strict=True):
        print(f"{prompt}: redness {base:.3f} without the search, {reward:.3f} with it")
    result.save(args.output)  # images, base/, and masks/ for `mu.attach` or `maskunet generate --masker`

    mu.attach(pipe, result.masks.select(0))  # the first prompt's masks, from another noise
    mu.sampling.generate(pipe, args.prompt[:1], seeds=1, **options).save(args.output / "again")


if __name__ == "__main__":
    main()
