"""The search: its masks raise the reward, repeat bit for bit, and serve other seeds."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import maskunet as mu
from maskunet.attaching import attachment_of
from maskunet.errors import DataError, RewardError, SettingError
from maskunet.maskers import MaskSchedule, RandomMasks
from maskunet.relaxation import derive_seed, gumbel_noise, gumbel_sigmoid
from maskunet.rewards import parse_reward
from maskunet.sampling import StepwiseSampler
from maskunet.searching import SearchConfig, SearchResult
from maskunet.searching.searched_masks import SearchedMasks
from maskunet.targets import describe

PROMPTS, SEEDS = ["a b", "c d"], [4, 7]
CONFIG = SearchConfig.preset(
    "masks",
    num_inference_steps=3,
    iterations=3,
    guidance_scale=4.0,
    learning_rate=0.5,
    initial_logit=1.0,
    halves="both",
)


def redness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return images[:, 0].mean((1, 2)) - images[:, 2].mean((1, 2))


def search(
    pipe: Any, *, prompts: Sequence[str] = PROMPTS, seeds: Sequence[int] = SEEDS, **changes: Any
) -> SearchResult:
    return mu.search(pipe, prompts, redness, replace(CONFIG, **changes), seeds=seeds, progress=False)


def generate(pipe: Any) -> Tensor:
    generators = [torch.Generator().manual_seed(s) for s in SEEDS]
    options = {"num_inference_steps": 3, "guidance_scale": 4.0, "generator": generators, "output_type": "pt"}
    return pipe(PROMPTS, **options).images


def rewards_at(result: SearchResult, step: int) -> list[list[float]]:
    return [entry["reward"] for entry in result.history if entry["step"] == step]


def assert_same(first: SearchResult, second: SearchResult) -> None:
    expected = second.masks.tensors()
    assert all(torch.equal(bits, expected[name]) for name, bits in first.masks.tensors().items())
    assert torch.equal(first.tensor, second.tensor)


def assert_improved(result: SearchResult) -> None:
    assert result.base_rewards is not None
    assert bool((result.rewards > result.base_rewards).all())


def test_masks_raise_the_reward(pipe: Any) -> None:
    result = search(pipe)
    assert_improved(result)
    torch.testing.assert_close(result.rewards, redness(result.tensor, PROMPTS))
    density = result.masks.density()
    assert density.shape == (3, 2)
    assert 0.5 < float(density.min()) < float(density.max()) < 1
    assert len(result.images) == len(result.base_images) == 2
    # The first iterate of some step is not its best, and the masks are those of the best.
    steps = [torch.tensor(rewards_at(result, step)) for step in range(3)]
    assert all(len(rewards) == 4 for rewards in steps)
    assert any(bool((rewards.max(0).values > rewards[0]).any()) for rewards in steps)
    for step, rewards in enumerate(steps):
        drawn = torch.tensor([entry["density"] for entry in result.history if entry["step"] == step])
        torch.testing.assert_close(density[step], drawn.gather(0, rewards.argmax(0)[None])[0])


def test_a_search_is_adamw_on_the_logits_bit_for_bit(pipe: Any) -> None:
    """The algorithm written out, for one sample and one optimised step."""
    config = SearchConfig.preset(
        "masks", num_inference_steps=3, iterations=(0, 2, 0), guidance_scale=4.0, learning_rate=0.5
    )
    result = mu.search(pipe, ["a b"], redness, config, seeds=[4], progress=False)
    network = describe(pipe.unet, "decoder-attention")
    sampler = StepwiseSampler(pipe, ["a b"], seeds=[4], num_inference_steps=3, guidance_scale=4.0)
    with torch.no_grad():
        sampler.advance(sampler.predict())
        unconditional = sampler.predict_half(conditional=False)
    masker = SearchedMasks(network)
    mu.attach(pipe, masker)
    logits = {x.name: torch.full((1, *x.shape), config.initial_logit, requires_grad=True) for x in network.layers}
    optimizer = torch.optim.AdamW(logits.values(), lr=0.5, weight_decay=0.0, fused=True)
    best: dict[str, Tensor] = {}
    highest, rewards = -float("inf"), []
    for k in range(3):
        noise = {
            name: gumbel_noise(tuple(s.shape[1:]), derive_seed(4, "search", 1, k, name))[None]
            for name, s in logits.items()
        }
        masker.masks = {name: gumbel_sigmoid(s, noise[name]) for name, s in logits.items()}
        output = sampler.apply_guidance(unconditional, sampler.predict_half(conditional=True))
        reward = redness(sampler.decode(sampler.pred_x0(output)), [])
        rewards.append(reward.tolist())
        if float(reward.detach()) > highest:
            highest, best = float(reward.detach()), {n: m.detach().bool() for n, m in masker.masks.items()}
        gradients = torch.autograd.grad(-reward.sum(), list(logits.values()))
        for s, gradient in zip(logits.values(), gradients, strict=True):
            s.grad = gradient.contiguous()
        optimizer.step()
    mu.detach(pipe)
    assert rewards_at(result, 1) == rewards
    assert all(torch.equal(result.masks.get(1, name), mask) for name, mask in best.items())


@pytest.mark.parametrize("changes", [{}, {"gumbel": False, "initial_logit": 0.0}, {"halves": "conditional"}])
def test_reuse_changes_no_bit(pipe: Any, changes: dict[str, Any]) -> None:
    reused, computed = search(pipe, **changes), search(pipe, reuse=False, **changes)
    assert_same(reused, computed)
    assert [h["reward"] for h in reused.history] == [h["reward"] for h in computed.history]
    assert float(reused.masks.density().min()) < 1


def test_reuse_does_not_apply_freeu_twice(pipe: Any) -> None:
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)
    assert_same(search(pipe), search(pipe, reuse=False))


@pytest.mark.parametrize("halves", ["both", "conditional"])
def test_a_sample_does_not_depend_on_its_batch(pipe: Any, halves: str) -> None:
    both = search(pipe, halves=halves)
    alone = search(pipe, prompts=PROMPTS[1:], seeds=SEEDS[1:], halves=halves)
    torch.testing.assert_close(alone.tensor[0], both.tensor[1], atol=1e-3, rtol=1e-3)
    expected = both.masks.select(1)
    equal = [
        (alone.masks.get(i, layer.name) == expected.get(i, layer.name)).float().mean()
        for i in range(3)
        for layer in expected.network.layers
    ]
    assert float(torch.stack(equal).mean()) > 0.999


def test_without_iterations_it_is_the_pipeline(pipe: Any) -> None:
    result = search(pipe, iterations=0)
    torch.testing.assert_close(result.tensor, generate(pipe), atol=1e-5, rtol=1e-5)
    assert float(result.masks.density().min()) == 1
    assert [(h["step"], h["reward"], h["density"]) for h in result.history] == [
        (step, [None, None], [1.0, 1.0]) for step in range(3)
    ]


def test_attached_masks_generate_the_same_images(pipe: Any) -> None:
    result = search(pipe)
    mu.attach(pipe, result.masks)
    torch.testing.assert_close(generate(pipe), result.tensor, atol=1e-4, rtol=1e-4)


def test_masks_of_one_sample_serve_other_prompts_and_steps(pipe: Any) -> None:
    result = search(pipe)
    options = {"num_inference_steps": 5, "output_type": "pt"}

    def images() -> Tensor:
        return pipe(["e f g"] * 3, generator=torch.Generator().manual_seed(0), **options).images

    base = images()
    mu.attach(pipe, result.masks.select(1))
    masked = images()
    assert bool(((masked - base).abs().amax((1, 2, 3)) > 1e-3).all())
    generator = torch.Generator().manual_seed(SEEDS[1])
    options |= {"num_inference_steps": 3, "guidance_scale": 4.0}
    again = pipe(PROMPTS[1], generator=generator, **options).images
    torch.testing.assert_close(again[0], result.tensor[1], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("scheduler", "changes"),
    [("PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1}), ("HeunDiscreteScheduler", {})],
)
def test_steps_at_one_timestep_have_masks_of_their_own(pipe: Any, scheduler: str, changes: dict[str, Any]) -> None:
    pipe.scheduler = getattr(diffusers, scheduler)(**changes)
    result = search(pipe, learning_rate=2.0)
    timesteps = result.masks.timesteps
    assert len(set(timesteps)) < len(timesteps)
    mu.attach(pipe, result.masks)
    for _ in range(2):  # the second run starts from the first step again
        torch.testing.assert_close(generate(pipe), result.tensor, atol=1e-4, rtol=1e-4)


def test_a_step_that_ends_early_leaves_no_gradient(pipe: Any) -> None:
    """A step that ends by its target has computed a gradient, which no step may use."""
    early = search(pipe, target_reward=-10.0)
    assert [h["iteration"] for h in early.history] == [0, 0, 0]
    assert_same(early, search(pipe, target_reward=-10.0, iterations=1))


def test_masks_of_the_conditional_half(pipe: Any) -> None:
    result = search(pipe, halves="conditional")
    assert_improved(result)
    mu.attach(pipe, result.masks)
    torch.testing.assert_close(generate(pipe), result.tensor, atol=1e-4, rtol=1e-4)
    assert result.masks.select(0).guided_half == "conditional"
    with pytest.raises(DataError, match="conditional half"):
        search(pipe)


def test_rewards_see_smaller_previews_and_complete_results(pipe: Any) -> None:
    sizes = []

    def observed(images: Tensor, prompts: Sequence[str]) -> Tensor:
        sizes.append(images.shape[-1])
        return redness(images, prompts)

    mu.search(pipe, ["a"], observed, replace(CONFIG, preview_size=8, iterations=1), progress=False)
    assert sizes == [16, *[8] * 6, 16]  # base, two iterates per step, result


def test_schedules_are_merged_by_a_rule(pipe: Any) -> None:
    masks = search(pipe).masks
    parts = [masks.select(0), masks.select(1)]
    density = {rule: MaskSchedule.merge(parts, rule).density().mean() for rule in ("all", "majority", "any")}
    assert density["all"] < density["majority"] <= density["any"]
    merged = MaskSchedule.merge(parts, "all")
    name = masks.network.layers[0].name
    assert torch.equal(merged.get(1, name)[0], masks.get(1, name).all(0))
    with pytest.raises(ValueError, match="majority"):
        MaskSchedule.merge(parts, "most")


@pytest.mark.parametrize(
    "scheduler", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "EulerAncestralDiscreteScheduler"]
)
def test_other_schedulers_and_velocity_repeat_bit_for_bit(pipe: Any, scheduler: str) -> None:
    pipe.scheduler = getattr(diffusers, scheduler)(prediction_type="v_prediction")
    result = search(pipe)
    assert_same(result, search(pipe))
    assert float(result.masks.density().min()) < 1


def test_sdxl(sdxl_pipe: Any) -> None:
    result = search(sdxl_pipe)
    assert result.base_rewards is not None
    assert float((result.rewards - result.base_rewards).mean()) > 0


def test_a_search_on_top_of_a_masker(pipe: Any) -> None:
    mu.attach(pipe, RandomMasks.for_unet(pipe.unet, density=0.9, seed=1), seed=3)
    attachment = attachment_of(pipe)
    assert attachment is not None
    result = search(pipe)
    assert attachment_of(pipe) is attachment
    with mu.disabled(pipe):  # a disabled masker has no effect on the search
        alone = search(pipe)
    mu.detach(pipe)
    plain = search(pipe)
    assert_same(alone, plain)
    assert result.base is not None
    assert plain.base is not None
    assert not torch.equal(result.base, plain.base)


def test_without_iterations_the_attached_masker_acts_alone(pipe: Any) -> None:
    generator = mu.MaskGenerator.for_unet(pipe.unet, mu.MaskGeneratorConfig(initial_logit=1.0), seed=0)
    generator.requires_grad_(True)
    for masker, seed in ((generator, 5), (search(pipe).masks, None)):
        mu.attach(pipe, masker, seed=seed)
        result = search(pipe, iterations=0)
        assert result.base is not None
        torch.testing.assert_close(result.tensor, result.base, atol=1e-5, rtol=1e-5)
        larger = search(pipe, prompts=PROMPTS * 2, seeds=range(4))
        assert larger.base_rewards is not None
        assert float((larger.rewards - larger.base_rewards).mean()) > 0
        assert all(p.grad is None and p.requires_grad for p in generator.parameters())
        mu.detach(pipe)


def test_attached_masks_keep_their_strength_under_a_search(pipe: Any) -> None:
    first, second = (RandomMasks.for_unet(pipe.unet, density=0.7, seed=seed) for seed in (1, 2))
    bases = []
    for masker, strength in (
        (first, 1.0),
        (first, 0.4),
        ({"a": first, "b": second}, {"a": 0.4, "b": 0.8}),
        ({"a": first, "b": second}, 0.4),
    ):
        mu.attach(pipe, masker, strength=strength)
        result = search(pipe, iterations=0)
        assert result.base is not None
        torch.testing.assert_close(result.tensor, result.base, atol=1e-5, rtol=1e-5)
        assert not any(torch.allclose(result.base, other, atol=1e-4) for other in bases)
        bases.append(result.base)
        mu.detach(pipe)


def test_with_a_lora(pipe: Any) -> None:
    from peft import LoraConfig

    pipe = copy.deepcopy(pipe)
    plain = search(pipe)
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights="gaussian"))
    for name, parameter in pipe.unet.named_parameters():
        if "lora_B" in name:
            with torch.no_grad():
                parameter.fill_(0.05)
    result = search(pipe)
    assert_improved(result)
    assert result.base_rewards is not None
    assert plain.base_rewards is not None
    assert not torch.allclose(result.base_rewards, plain.base_rewards)
    adapters = [p for name, p in pipe.unet.named_parameters() if "lora_" in name]
    assert all(p.grad is None and p.requires_grad for p in adapters)
    mu.attach(pipe, result.masks)
    torch.testing.assert_close(generate(pipe), result.tensor, atol=1e-4, rtol=1e-4)


def test_iterations_end_by_target_time_and_patience(pipe: Any) -> None:
    def counts(**changes: Any) -> list[int]:
        history = search(pipe, **changes).history
        return [sum(entry["step"] == step for entry in history) for step in range(3)]

    assert counts(iterations=(2, 0, 1)) == [3, 1, 2]
    assert counts(target_reward=-10.0) == [1, 1, 1]
    assert counts(time_limit_s=1e-9) == [1, 1, 1]
    assert min(counts(iterations=20, patience=1, learning_rate=50.0)) < 21


def test_the_paper_preset_keeps_the_last_iterate(pipe: Any) -> None:
    config = SearchConfig.preset("paper", num_inference_steps=2, iterations=2, guidance_scale=4.0)
    result = mu.search(pipe, PROMPTS, redness, config, seeds=SEEDS, progress=False)
    # Logits have barely moved: about P(keep) of logit 1 is left.
    assert float(result.masks.density().mean()) == pytest.approx(0.934, abs=0.01)
    for step in range(2):
        last = [entry for entry in result.history if entry["step"] == step][-1]
        assert last["reward"] == [None, None]  # kept without a reward
        assert result.masks.density()[step].tolist() == pytest.approx(last["density"])


def test_slicing_the_decoder_changes_nothing(pipe: Any) -> None:
    expected = search(pipe)
    pipe.vae.enable_slicing()
    try:
        result = search(pipe)
    finally:
        pipe.vae.disable_slicing()
    torch.testing.assert_close(result.tensor, expected.tensor, atol=1e-4, rtol=1e-4)


def test_checkpointing_changes_no_bit(pipe: Any) -> None:
    assert_same(search(pipe), search(pipe, gradient_checkpointing=True))


def test_half_precision_raises_the_reward(pipe: Any) -> None:
    pipe = copy.deepcopy(pipe).to(torch.bfloat16)  # its parts are shared among tests
    result = search(pipe)
    assert result.tensor.dtype == torch.float32
    assert result.base_rewards is not None
    assert float((result.rewards - result.base_rewards).mean()) > 0


def test_a_reward_by_its_description(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {}

    def parse(text: str, **placement: Any) -> Any:
        options[text] = placement
        return parse_reward(text, **placement)

    monkeypatch.setattr("maskunet.rewards.registry.BUILT_IN", {})
    monkeypatch.setattr("maskunet.rewards.registry._declared", lambda: {"red": _Entry()})
    monkeypatch.setattr("maskunet.rewards.registry.parse_reward", parse)
    result = mu.search(pipe, PROMPTS, "red:2", replace(CONFIG, iterations=1), seeds=SEEDS, progress=False)
    torch.testing.assert_close(result.rewards, 2 * redness(result.tensor, PROMPTS))
    assert options == {"red:2": {"device": pipe.device, "dtype": torch.float32}}
    with pytest.raises(RewardError, match="expected a reward among red, got 'blue'"):
        mu.search(pipe, PROMPTS, "blue", CONFIG)


class _Entry:
    """An entry point of a package that declares a reward."""

    name, value = "red", "package:redness"

    @staticmethod
    def load() -> Callable[..., Tensor]:
        return redness


@pytest.mark.parametrize("reward", [None, 3, ["hpsv2:5"], 0.5])
def test_other_rewards_are_refused_in_one_line(pipe: Any, reward: Any) -> None:
    with pytest.raises(SettingError, match=rf"description such as 'hpsv2:5', got {type(reward).__name__}$"):
        mu.search(pipe, PROMPTS, reward, CONFIG)


@pytest.mark.parametrize(
    ("reward", "match"),
    [
        (lambda p, _: torch.zeros(len(p), requires_grad=True), "depend on the masks"),
        (lambda p, _: p.mean((1, 2, 3)) * float("nan"), "finite"),
        (lambda p, _: p.mean(), r"shape \(2,\)"),
        (lambda p, _: p.detach().mean((1, 2, 3)), "differentiable"),
    ],
)
def test_bad_rewards_are_named(pipe: Any, reward: Any, match: str) -> None:
    reward.__name__ = "my_reward"
    with pytest.raises(RewardError, match=match) as error:
        mu.search(pipe, PROMPTS, reward, CONFIG, progress=False)
    assert "my_reward" in str(error.value)
    assert attachment_of(pipe) is None


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([], redness), {}, "at least one prompt"),
        (("a b", redness), {}, "put it into a list"),
        ((["a", None], redness), {}, "prompts as strings, got None"),
        ((PROMPTS, redness, "default"), {}, "config to be a SearchConfig, got str"),
        ((PROMPTS, redness), {"seeds": [1]}, "one seed for each of 2 prompts"),
        ((PROMPTS, redness), {"seeds": [1, -1]}, "seeds as integers from 0 to .*, got -1"),
    ],
)
def test_bad_arguments_are_refused(pipe: Any, arguments: Any, options: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        mu.search(pipe, *arguments, **options)
    assert attachment_of(pipe) is None
