"""The search: what it improves, what it repeats, what it leaves behind, and what it refuses."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import maskunet as mu
from maskunet.attaching.attachment import attachment_of
from maskunet.errors import CheckpointError, DataError, RewardError, TargetError
from maskunet.maskers import MaskSchedule, RandomMasks
from maskunet.searching import SearchConfig, SearchResult
from maskunet.searching.prefix_cache import PrefixCache, unmasked_prefix
from maskunet.targets import describe

PROMPTS = ["a b", "c d"]
SEEDS = [4, 7]
CONFIG = SearchConfig(
    num_inference_steps=3, iterations=3, guidance_scale=4.0, learning_rate=0.5, initial_logit=1.0, halves="both"
)


def redness(pictures: Tensor, prompts: Sequence[str]) -> Tensor:
    return pictures[:, 0].mean((1, 2)) - pictures[:, 2].mean((1, 2))


def searched(pipe: Any, config: SearchConfig = CONFIG, **options: Any) -> SearchResult:
    return mu.search(pipe, PROMPTS, redness, config, seeds=SEEDS, progress=False, **options)


def changed(**changes: Any) -> SearchConfig:
    return SearchConfig(**{**vars(CONFIG), **changes})


def masks_of(result: SearchResult) -> dict[str, Tensor]:
    return result.masks.tensors()


def equal(a: SearchResult, b: SearchResult) -> bool:
    first, second = masks_of(a), masks_of(b)
    return all(torch.equal(first[name], second[name]) for name in first) and torch.equal(a.tensor, b.tensor)


def test_the_reward_rises_and_masks_are_used(pipe: Any) -> None:
    found = searched(pipe)
    assert found.base_rewards is not None
    assert bool((found.rewards > found.base_rewards).all())
    density = found.masks.density()
    assert density.shape == (3, 2)
    assert 0.5 < float(density.min()) < float(density.max()) < 1
    assert len(found.images) == 2
    # The best iterate of each step is at least as good as its first, by the reward that was seen.
    for step in range(3):
        rewards = torch.tensor([h["reward"] for h in found.history if h["step"] == step])
        assert len(rewards) == 4
        assert bool((rewards.max(0).values >= rewards[0]).all())
    assert any(
        max(h["reward"][0] for h in found.history if h["step"] == s) > found.history[4 * s]["reward"][0]
        for s in range(3)
    )


@pytest.mark.parametrize("gumbel", [True, False])
def test_reuse_changes_no_bit(pipe: Any, gumbel: bool) -> None:
    config = changed(gumbel=gumbel, initial_logit=0.0 if not gumbel else 1.0)
    with_reuse, without = searched(pipe, config), searched(pipe, changed(**{**vars(config), "reuse": False}))
    assert equal(with_reuse, without)
    assert [h["reward"] for h in with_reuse.history] == [h["reward"] for h in without.history]
    assert float(with_reuse.masks.density().min()) < 1


@pytest.mark.parametrize("halves", ["both", "conditional"])
def test_a_sample_does_not_depend_on_its_batch(pipe: Any, halves: str) -> None:
    both = searched(pipe, changed(halves=halves))
    alone = mu.search(pipe, PROMPTS[1:], redness, changed(halves=halves), seeds=SEEDS[1:], progress=False)
    torch.testing.assert_close(alone.tensor[0], both.tensor[1], atol=1e-3, rtol=1e-3)
    mine, theirs = alone.masks, both.masks.select(1)
    same = torch.stack(
        [(mine.get(i, n) == theirs.get(i, n)).float().mean() for i in range(3) for n in masks_of(alone)]
    )
    assert float(same.mean()) > 0.999


def test_without_iterations_it_is_the_pipeline(pipe: Any) -> None:
    found = searched(pipe, changed(iterations=0))
    generators = [torch.Generator().manual_seed(s) for s in SEEDS]
    plain = pipe(PROMPTS, num_inference_steps=3, guidance_scale=4.0, generator=generators, output_type="pt").images
    torch.testing.assert_close(found.tensor, plain, atol=1e-5, rtol=1e-5)
    assert float(found.masks.density().min()) == 1


def test_found_masks_give_the_same_picture_again_and_serve_other_seeds(pipe: Any, tmp_path: Path) -> None:
    found = searched(pipe)
    folder = found.save(tmp_path / "found")
    names = sorted(p.name for p in folder.iterdir())
    assert names == ["00000.json", "00000.png", "00001.json", "00001.png", "base", "masks"]
    summary = json.loads((folder / "00001.json").read_text())
    assert (summary["prompt"], summary["seed"]) == (PROMPTS[1], SEEDS[1])
    assert summary["reward"] == pytest.approx(float(found.rewards[1]))
    assert len(summary["history"]) == 12
    mu.attach(pipe, found.masks)
    generators = [torch.Generator().manual_seed(s) for s in SEEDS]
    again = pipe(PROMPTS, num_inference_steps=3, guidance_scale=4.0, generator=generators, output_type="pt").images
    torch.testing.assert_close(again, found.tensor, atol=1e-4, rtol=1e-4)
    one = mu.load(folder / "masks" / "00001", pipe.unet)
    mu.attach(pipe, one)
    alone = pipe(
        PROMPTS[1],
        num_inference_steps=3,
        guidance_scale=4.0,
        generator=generators[1].manual_seed(SEEDS[1]),
        output_type="pt",
    ).images
    torch.testing.assert_close(alone[0], found.tensor[1], atol=1e-3, rtol=1e-3)
    assert pipe(["e f g"] * 3, num_inference_steps=5, output_type="pt").images.isfinite().all()
    weights = found.masks.network.weights
    size = (folder / "masks" / "00001" / "masker.safetensors").stat().st_size
    assert size < 3 * weights / 8 + 10_000  # one bit a weight, step and sample


@pytest.mark.parametrize(
    ("scheduler", "changes"),
    [("PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1}), ("HeunDiscreteScheduler", {})],
)
def test_steps_at_one_timestep_have_masks_of_their_own(pipe: Any, scheduler: str, changes: dict[str, Any]) -> None:
    pipe.scheduler = getattr(diffusers, scheduler)(**changes)
    found = searched(pipe, changed(learning_rate=2.0))
    times = found.masks.timesteps
    assert len(set(times)) < len(times)
    mu.attach(pipe, found.masks)
    for _ in range(2):  # the second run starts from the first step again
        generators = [torch.Generator().manual_seed(s) for s in SEEDS]
        again = pipe(PROMPTS, num_inference_steps=3, guidance_scale=4.0, generator=generators, output_type="pt").images
        torch.testing.assert_close(again, found.tensor, atol=1e-4, rtol=1e-4)


def test_steps_that_end_early_leave_no_gradient(pipe: Any) -> None:
    """A step that ends by its target has computed a gradient that it does not use; nor may the next."""
    early = searched(pipe, changed(target_reward=-10.0))
    none = searched(pipe, changed(target_reward=-10.0, iterations=1))
    assert equal(early, none)
    first = searched(pipe, changed(iterations=(1, 1, 1), patience=1))
    assert bool(first.rewards.isfinite().all())


def test_free_u_is_not_applied_twice(pipe: Any) -> None:
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)
    assert equal(searched(pipe), searched(pipe, changed(reuse=False)))


def test_conditional_half_alone(pipe: Any) -> None:
    config = changed(halves="conditional")
    found = searched(pipe, config)
    assert equal(found, searched(pipe, changed(halves="conditional", reuse=False)))
    assert found.base_rewards is not None
    assert bool((found.rewards > found.base_rewards).all())
    mu.attach(pipe, found.masks)
    generators = [torch.Generator().manual_seed(s) for s in SEEDS]
    again = pipe(PROMPTS, num_inference_steps=3, guidance_scale=4.0, generator=generators, output_type="pt").images
    torch.testing.assert_close(again, found.tensor, atol=1e-4, rtol=1e-4)
    assert found.masks.select(0).guided_half == "conditional"
    with pytest.raises(DataError, match="conditional half"):
        searched(pipe)
    with pytest.raises(TargetError, match="guided batch"):
        pipe(["a"], num_inference_steps=1, guidance_scale=1.0)


def test_rewards_on_smaller_pictures(pipe: Any) -> None:
    sizes = []

    def seen(pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        sizes.append(pictures.shape[-1])
        return redness(pictures, prompts)

    mu.search(pipe, ["a"], seen, changed(preview_size=8, iterations=1), progress=False)
    assert sizes == [16, *[8] * 6, 16]  # the finished pictures are whole


def test_merged_schedules(pipe: Any) -> None:
    masks = searched(pipe).masks
    parts = [masks.select(0), masks.select(1)]
    kept = {rule: MaskSchedule.merge(parts, rule).density().mean() for rule in ("all", "majority", "any")}
    assert kept["all"] < kept["majority"] <= kept["any"]
    whole = MaskSchedule.merge(parts, "all")
    name = next(iter(masks_of(searched(pipe, changed(iterations=1)))))
    assert torch.equal(whole.get(1, name)[0], masks.get(1, name).all(0))
    with pytest.raises(ValueError, match="majority"):
        MaskSchedule.merge(parts, "most")


@pytest.mark.parametrize(
    "scheduler", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "EulerAncestralDiscreteScheduler"]
)
def test_other_schedulers_and_velocity(pipe: Any, scheduler: str) -> None:
    pipe.scheduler = getattr(diffusers, scheduler)(prediction_type="v_prediction")
    found = searched(pipe)
    assert equal(found, searched(pipe))
    assert float(found.masks.density().min()) < 1


def test_sdxl(make_pipe: Callable[[str], Any]) -> None:
    found = searched(make_pipe("sdxl"))
    assert found.base_rewards is not None
    assert float((found.rewards - found.base_rewards).mean()) > 0


def test_on_top_of_a_trained_masker(pipe: Any) -> None:
    random = RandomMasks.for_unet(pipe.unet, density=0.9, seed=1)
    mu.attach(pipe, random, seed=3)
    before = attachment_of(pipe)
    found = searched(pipe)
    after = attachment_of(pipe)
    assert before is not None
    assert after is not None
    assert after is before
    with mu.disabled(pipe):  # what is disabled does not lie under the search
        alone = searched(pipe)
    mu.detach(pipe)
    assert equal(alone, searched(pipe))
    assert found.base is not None
    assert not torch.equal(found.base, searched(pipe).base)


def test_masks_under_a_search_are_those_of_its_masker(pipe: Any) -> None:
    """With no iterations the picture is the masker's own, noise and all, whatever the number of its sets."""
    generator = mu.MaskGenerator.for_unet(pipe.unet, mu.MaskGeneratorConfig(initial_logit=1.0), seed=0)
    generator.requires_grad_(True)
    for masker, seed in ((generator, 5), (searched(pipe).masks, None)):
        mu.attach(pipe, masker, seed=seed)
        found = searched(pipe, changed(iterations=0))
        assert found.base is not None
        torch.testing.assert_close(found.tensor, found.base, atol=1e-5, rtol=1e-5)
        more = mu.search(pipe, PROMPTS * 2, redness, CONFIG, progress=False)
        assert more.base_rewards is not None
        assert float((more.rewards - more.base_rewards).mean()) > 0
        assert all(p.grad is None and p.requires_grad for p in generator.parameters())
        mu.detach(pipe)


def test_nothing_is_left_behind_after_a_failure(pipe: Any) -> None:
    state = {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    forwards = [m.__dict__.get("forward") for m in pipe.unet.modules()]
    scheduler, flags = dict(vars(pipe.scheduler)), [p.requires_grad for p in pipe.unet.parameters()]
    calls = 0

    def fails(pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        return redness(pictures, prompts)

    with pytest.raises(KeyboardInterrupt):
        mu.search(pipe, PROMPTS, fails, CONFIG, progress=False)
    assert attachment_of(pipe) is None
    assert [m.__dict__.get("forward") for m in pipe.unet.modules()] == forwards
    assert all(torch.equal(v, state[k]) for k, v in pipe.unet.state_dict().items())
    assert all(vars(pipe.scheduler)[k] is v for k, v in scheduler.items())
    assert [p.requires_grad for p in pipe.unet.parameters()] == flags


def test_pictures_that_cannot_be_scored_are_handed_back(pipe: Any, tmp_path: Path) -> None:
    calls, config = 0, changed(iterations=1, keep="last")

    def fails(pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        nonlocal calls
        calls += 1
        return redness(pictures, prompts) * (float("nan") if calls > 4 else 1)

    with pytest.raises(mu.errors.UnscoredError, match=r"finished and could not be scored: .*'fails'.*finite") as error:
        mu.search(pipe, PROMPTS, fails, config, seeds=SEEDS, progress=False)
    found = error.value.result
    expected = searched(pipe, config)
    assert torch.equal(found.tensor, expected.tensor)
    assert torch.equal(found.base_rewards, expected.base_rewards)
    assert bool(found.rewards.isnan().all())
    found.save(tmp_path / "found")
    assert json.loads((tmp_path / "found" / "00001.json").read_text())["reward"] is None
    assert (tmp_path / "found" / "masks" / "00001").is_dir()


def test_an_older_record_does_not_lie_beside_a_new_picture(
    pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = searched(pipe, changed(iterations=0))
    found.save(tmp_path)
    assert (tmp_path / "00000.json").is_file()

    def full(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("maskunet.searching.result.save", full)
    with pytest.raises(CheckpointError, match="no space left"):
        found.save(tmp_path)
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize("halves", ["both", "conditional"])
def test_masks_that_are_held_under_a_search_are_held_for_each_half(pipe: Any, halves: str) -> None:
    generator = mu.LowRankMasker.for_unet(pipe.unet, mu.LowRankMaskerConfig(rank=4, initial_logit=0.0), seed=0)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    counted: list[tuple[str, int]] = []
    made = generator.block_masks

    def counting(block: str, inputs: Any) -> Any:
        counted.append((block, len(inputs.hidden_states)))
        return made(block, inputs)

    generator.block_masks = counting  # type: ignore[method-assign]
    mu.attach(pipe, mu.HeldMasks(generator, every=100))
    found = searched(pipe, changed(halves=halves, compare_base=False))
    rows = {"both": [4], "conditional": [2, 2]}[
        halves
    ]  # an asking for each sequence of calls, whatever the iterations
    for block in generator.network.blocks:
        assert [count for name, count in counted if name == block.name] == rows
    assert bool(found.rewards.isfinite().all())


def test_with_a_lora(pipe: Any) -> None:
    from peft import LoraConfig

    pipe = copy.deepcopy(pipe)
    plain = searched(pipe)
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights="gaussian"))
    for name, parameter in pipe.unet.named_parameters():
        if "lora_B" in name:
            with torch.no_grad():
                parameter.fill_(0.05)
    found = searched(pipe)
    assert found.base_rewards is not None
    assert plain.base_rewards is not None
    assert not torch.allclose(found.base_rewards, plain.base_rewards)
    assert bool((found.rewards > found.base_rewards).all())
    adapters = [p for name, p in pipe.unet.named_parameters() if "lora_" in name]
    assert all(p.grad is None and p.requires_grad for p in adapters)
    mu.attach(pipe, found.masks)
    generators = [torch.Generator().manual_seed(s) for s in SEEDS]
    again = pipe(PROMPTS, num_inference_steps=3, guidance_scale=4.0, generator=generators, output_type="pt").images
    torch.testing.assert_close(again, found.tensor, atol=1e-4, rtol=1e-4)


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


def test_budgets(pipe: Any) -> None:
    def counts(**changes: Any) -> list[int]:
        history = searched(pipe, changed(**changes)).history
        return [sum(h["step"] == s for h in history) for s in range(3)]

    assert counts(iterations=(2, 0, 1)) == [3, 1, 2]
    # Spread evenly, whatever the number of steps.
    assert counts(iterations=(2, 1)) == [3, 3, 2]
    assert [SearchConfig().iterations_at(i, 15) for i in range(15)] == [0] * 5 + [4] * 5 + [0] * 5
    assert sum(SearchConfig().iterations_at(i, 50) for i in range(50)) == 4 * 17
    # Fewer steps than numbers: none is passed over.
    for name, most in (("default", 2), ("fast", 3), ("masks", 4)):
        few = SearchConfig.preset(name)
        assert [max(few.iterations_at(i, n) for i in range(n)) for n in range(1, 8)] == [most] * 7
        assert [few.iterations_at(i, 3) for i in range(3)] == [0, most, 0]
    paper = SearchConfig.preset("paper")
    assert [paper.iterations_at(i, 15) for i in range(15)] == [1] * 7 + [10] * 8
    assert counts(target_reward=-10.0) == [1, 1, 1]
    assert counts(time_limit_s=1e-9) == [1, 1, 1]
    assert min(counts(iterations=20, patience=1, learning_rate=50.0)) < 21


def test_paper_preset_keeps_the_last_iterate(pipe: Any) -> None:
    config = SearchConfig.preset("paper", num_inference_steps=2, iterations=2, guidance_scale=4.0)
    found = searched(pipe, config)
    assert (config.keep, config.learning_rate, config.reuse) == ("last", 1e-2, False)
    # Logits have barely moved: about P(keep) of logit 1 is left.
    assert float(found.masks.density().mean()) == pytest.approx(0.934, abs=0.01)
    with pytest.raises(DataError, match="preset"):
        SearchConfig.preset("best")


def test_gradients_are_bounded_per_sample(pipe: Any) -> None:
    found = searched(pipe, changed(max_grad_norm=1e-6, learning_rate=1e-3))
    assert bool(found.rewards.isfinite().all())


def test_a_step_that_no_logits_come_to_is_plain_and_one_that_they_do_goes_on_with_them(pipe: Any) -> None:
    calls = 0

    def counted(pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        nonlocal calls
        calls += 1
        return redness(pictures, prompts)

    config = changed(carry_over=True, iterations=(0, 2, 0), compare_base=False, learning_rate=2.0)
    found = mu.search(pipe, PROMPTS, counted, config, seeds=SEEDS, progress=False)
    density = found.masks.density()
    assert density[0].tolist() == [1.0, 1.0]
    assert float(density[1:].max()) < 1
    assert [(h["step"], h["reward"] == [None, None]) for h in found.history] == [
        (0, True),
        *[(1, False)] * 3,
        (2, True),
    ]
    assert calls == 4  # three iterates, and the finished pictures
    # Without iterations the logits are those of before, and only their noise is drawn anew.
    still = mu.search(pipe, PROMPTS, redness, replace(config, gumbel=False, initial_logit=0.0), progress=False).masks
    assert all(torch.equal(still.get(2, name), still.get(2, name)) for name in masks_of(found))
    assert float((still.density()[2] - still.density()[1]).abs().max()) < 0.2


def test_carried_over_masks_start_from_the_step_before(pipe: Any) -> None:
    carried, reset = (searched(pipe, changed(carry_over=c, learning_rate=2.0, gumbel=False)) for c in (True, False))
    first = [h["density"] for h in carried.history if h["iteration"] == 0]
    assert first[0] == [1.0, 1.0]
    assert max(first[1]) < 1
    assert [h["density"] for h in reset.history if h["iteration"] == 0] == [[1.0, 1.0]] * 3


def test_slicing_the_decoder_gives_the_same_pictures(pipe: Any) -> None:
    expected = searched(pipe)
    pipe.vae.enable_slicing()
    try:
        found = searched(pipe)
    finally:
        pipe.vae.disable_slicing()
    torch.testing.assert_close(found.tensor, expected.tensor, atol=1e-4, rtol=1e-4)


def test_checkpointing_gives_the_same_masks(pipe: Any) -> None:
    assert equal(searched(pipe), searched(pipe, changed(gradient_checkpointing=True)))
    assert not pipe.unet.is_gradient_checkpointing


def test_half_precision(pipe: Any) -> None:
    pipe = copy.deepcopy(pipe).to(torch.bfloat16)  # its parts are shared among tests
    found = searched(pipe)
    assert found.tensor.dtype == torch.float32
    assert bool(found.rewards.isfinite().all())


def test_what_is_reused(pipe: Any) -> None:
    network = describe(pipe.unet, "decoder-attention")
    names = unmasked_prefix(pipe.unet, network)
    assert names == ["time_embedding", "conv_in", *(f"down_blocks.{i}" for i in range(3)), "mid_block", "up_blocks.0"]
    assert unmasked_prefix(pipe.unet, describe(pipe.unet, "all")) == ["time_embedding", "conv_in"]
    reuse = PrefixCache(pipe.unet, network)
    options = {"num_inference_steps": 1, "guidance_scale": 1.0, "output_type": "latent"}
    pipe(["a"], **options)
    pipe(["a"], **options)
    assert reuse.computed == len(names)
    reuse.remove()


def test_wrong_settings(pipe: Any) -> None:
    for wrong in ({"iterations": -1}, {"learning_rate": 0.0}, {"keep": "first"}, {"num_inference_steps": 0}):
        with pytest.raises(DataError):
            searched(pipe, changed(**wrong))
    with pytest.raises(DataError, match="prompt"):
        mu.search(pipe, [], redness, CONFIG)
    with pytest.raises(DataError, match="list"):
        mu.search(pipe, "a b", redness, CONFIG)
    with pytest.raises(DataError, match="multiples of 2"):
        searched(pipe, changed(height=17))
    pipe.scheduler = diffusers.LCMScheduler()
    with pytest.raises(DataError, match="LCM"):
        searched(pipe)
