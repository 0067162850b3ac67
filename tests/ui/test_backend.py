"""What the page computes, without a page: pairs, searches, what is kept, and who may read what."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import maskunet as mu
from maskunet.attaching import attachment_of
from maskunet.errors import MaskUNetError
from maskunet.sampling import generate
from maskunet.ui.backend import Backend
from maskunet.ui.offered_models import OfferedModels
from maskunet.ui.requests import Request, SearchControl, SearchProgress, latest_states
from maskunet.ui.results_folder import ResultsFolder, safe_name

BackendFactory = Callable[..., Backend]
REWARD = "tests-redness"


def silent(share: float, text: str) -> None:
    """Show nothing."""


def redness(images: torch.Tensor, prompts: Any) -> torch.Tensor:
    return images[:, 0].mean((1, 2)) - images[:, 2].mean((1, 2))


@pytest.fixture
def backend(make_backend: BackendFactory, monkeypatch: pytest.MonkeyPatch) -> Backend:
    """A backend whose model is rewarded for red."""
    made = make_backend(REWARD)
    reward = mu.rewards.FunctionReward(redness, "redness")
    monkeypatch.setattr("maskunet.ui.offered_models.parse_reward", lambda described: reward)
    return made


def test_a_pair_is_the_base_model_and_the_masked_one(backend: Backend, request_: Request) -> None:
    told: list[tuple[float, str]] = []
    pair = backend.compare(request_, lambda share, text: told.append((share, text)))
    pipe = backend.models.pipe("tiny")
    options: dict[str, Any] = {"seeds": 5, "num_inference_steps": 3, "guidance_scale": 4.0, "progress": False}
    base = generate(pipe, ["a b"], **options).tensor[0]
    mu.attach(pipe, backend.models.masker("masker-1", "tiny"))
    masked = generate(pipe, ["a b"], **options).tensor[0]
    assert torch.equal(pair.base.image, base)
    assert torch.equal(pair.masked.image, masked)
    assert not torch.equal(base, masked)
    assert pair.seed == 5
    assert pair.masked.reward == pytest.approx(float(redness(masked[None], ["a b"])))
    assert pair.base.verdict is None  # the judge knows the bundled world alone
    shares = [share for share, _ in told]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert {text for _, text in told} == {"Loading", "Generating the base side", "Generating the masked side"}


def test_what_was_attached_is_put_back_whatever_happens(backend: Backend, request_: Request) -> None:
    pipe = backend.models.pipe("tiny")
    before = mu.attach(pipe, backend.models.masker("masker-2", "tiny"))
    backend.compare(request_, silent)
    assert attachment_of(pipe) is before

    def fail(share: float, text: str) -> None:
        if share > 0.6:
            raise RuntimeError("gone")

    with pytest.raises(RuntimeError, match="gone"):
        backend.compare(request_, fail)
    assert attachment_of(pipe) is before


def test_two_people_at_once_get_what_they_get_alone(backend: Backend, request_: Request) -> None:
    asked = [request_, dataclasses.replace(request_, masker="masker-2", seed=9, prompt="c d")]
    alone = [backend.compare(a, silent) for a in asked]
    found: dict[int, Any] = {}

    def ask(person: int) -> None:
        found[person] = [backend.compare(asked[person], silent) for _ in range(3)]

    people = [threading.Thread(target=ask, args=(i,)) for i in (0, 1)]
    for person in people:
        person.start()
    for person in people:
        person.join()
    for i in (0, 1):
        for pair in found[i]:
            assert torch.equal(pair.base.image, alone[i].base.image)
            assert torch.equal(pair.masked.image, alone[i].masked.image)


def test_a_gallery_holds_the_seeds_that_follow(backend: Backend, request_: Request) -> None:
    pairs = backend.gallery(dataclasses.replace(request_, count=5), silent)
    assert [pair.seed for pair in pairs] == [5, 6, 7, 8, 9]
    first = backend.compare(request_, silent)
    torch.testing.assert_close(pairs[0].masked.image, first.masked.image, atol=1e-4, rtol=0)
    assert not torch.equal(pairs[0].base.image, pairs[1].base.image)


def test_a_search_is_shown_kept_and_used_again(backend: Backend, request_: Request, offered: Path) -> None:
    asked = dataclasses.replace(request_, masker=None)
    states = list(backend.search(asked, "masks", SearchControl()))
    last = states[-1]
    for part in ([m.share for m in states if m.base is None], [m.share for m in states if m.base is not None]):
        assert part == sorted(part)
    assert all(m.result is None for m in states[:-1])
    assert last.result is not None
    assert not last.is_stopped
    assert last.current is not None
    assert torch.equal(last.current.image, last.result.tensor[0])
    assert len(last.rewards) == len(last.result.history) == 1 + 5 + 1
    seen = last.result.history[1]["reward"][0]
    assert last.rewards[1] == pytest.approx(seen, abs=1e-5)
    # The same as a search by the library.
    config = mu.SearchConfig.preset("masks", num_inference_steps=3, guidance_scale=4.0)
    reward = backend.models.reward("tiny")
    assert reward is not None
    plain = mu.search(backend.models.pipe("tiny"), ["a b"], reward, config, seeds=[5], progress=False)
    assert torch.equal(plain.tensor, last.result.tensor)
    torch.testing.assert_close(plain.base_rewards, last.result.base_rewards)

    name = backend.save_masks(last.result, "../../My masks!")
    assert name == "found/My-masks"
    assert backend.save_masks(last.result, "My masks") == "found/My-masks-2"
    assert backend.save_masks(last.result, "") == "found/a-b"
    assert name in backend.models.masker_names()
    again = backend.compare(dataclasses.replace(asked, masker=name), silent)
    torch.testing.assert_close(again.masked.image, last.result.tensor[0], atol=1e-4, rtol=1e-4)
    kept = sorted(p.relative_to(offered / "files" / "found").parts[0] for p in (offered / "files" / "found").iterdir())
    assert kept == ["My-masks", "My-masks-2", "a-b"]
    with pytest.raises(MaskUNetError, match="conditional half"):
        list(backend.search(dataclasses.replace(asked, masker=name), "masks", SearchControl()))


def test_a_search_has_the_drafts_that_the_command_has(backend: Backend, request_: Request) -> None:
    asked = dataclasses.replace(request_, masker=None, guidance_scale=None, seed=6)
    last = list(backend.search(asked, "default", SearchControl()))[-1]
    assert last.result is not None
    assert last.result.config.candidates == mu.SearchConfig().candidates == 7
    pipe, reward = backend.models.pipe("tiny"), backend.models.reward("tiny")
    assert reward is not None
    plain = mu.search(
        pipe, ["a b"], reward, mu.SearchConfig(num_inference_steps=3, guidance_scale=7.5), seeds=[6], progress=False
    )
    assert last.result.start_seeds == plain.start_seeds != [6]
    assert torch.equal(plain.tensor, last.result.tensor)
    # Beside it, as with the command, stands the image of the visitor's own seed.
    assert plain.base is not None
    assert last.base is not None
    torch.testing.assert_close(last.base.image, plain.base[0], atol=1e-5, rtol=1e-5)


def test_a_search_that_is_stopped_keeps_what_it_found(backend: Backend, request_: Request) -> None:
    control = SearchControl()
    states = []
    for state in backend.search(dataclasses.replace(request_, steps=12), "paper", control):
        states.append(state)
        if state.rewards:
            control.stop.set()
    last = states[-1]
    assert last.is_stopped
    assert last.result is not None
    assert len(last.rewards) < 60  # whole it would be 12 + 7 * 10 or so
    assert backend.save_masks(last.result, "early") == "found/early"
    with pytest.raises(MaskUNetError, match="stopped before it began"):
        list(backend.search(request_, "masks", control))


def test_a_search_that_nobody_watches_ends(backend: Backend, request_: Request) -> None:
    control = SearchControl()
    watched = backend.search(dataclasses.replace(request_, steps=200), "paper", control)
    next(watched)
    watched.close()
    assert control.abandon.is_set()
    assert backend.compare(request_, silent).seed == 5  # the next one's turn comes
    assert attachment_of(backend.models.pipe("tiny")) is None


def test_analyses_see_the_masker_that_was_asked_for(backend: Backend, request_: Request) -> None:
    found = backend.analyse("density", dataclasses.replace(request_, count=7), silent)
    assert backend.analyses.attached == [backend.models.masker("masker-1", "tiny")]
    assert found.settings == {
        "prompts": ("a b",), "num_inference_steps": 3, "guidance_scale": 4.0, "seed": 5, "count": 7,
    }  # fmt: skip
    assert attachment_of(backend.models.pipe("tiny")) is None
    folder = backend.save_analysis(found, "density/masker-1")
    assert [p.name for p in folder.iterdir()] == ["how.csv"]
    assert folder.name == "density-masker-1"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "  "}, "a prompt of 1 to"),
        ({"prompt": "x" * 2000}, "got 2000"),
        ({"steps": 0}, "steps to be an integer >= 1 and <= 200, got 0"),
        ({"steps": None}, "got None"),
        ({"steps": 2.5}, "steps to be an integer"),
        ({"guidance_scale": "much"}, "got 'much'"),
        ({"guidance_scale": float("nan")}, "guidance_scale to be a finite number"),
        ({"seed": -1}, "seed to be an integer >= 0"),
        ({"model": "/etc"}, "a model among tiny, got '/etc'"),
        ({"masker": "/etc"}, "a masker among masker-1, masker-2, got '/etc'"),
        ({"masker": "found/../../masker-1"}, "a masker among"),
        ({"masker": None}, "none is chosen"),
    ],
)
def test_bad_requests_are_refused(backend: Backend, request_: Request, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(MaskUNetError, match=message):
        backend.compare(dataclasses.replace(request_, **changes), silent)


def test_other_refusals(make_backend: BackendFactory, request_: Request, offered: Path, tmp_path: Path) -> None:
    backend = make_backend()
    with pytest.raises(MaskUNetError, match="--reward"):
        list(backend.search(request_, "masks", SearchControl()))
    with pytest.raises(MaskUNetError, match="a preset"):
        list(backend.search(request_, "best", SearchControl()))
    with pytest.raises(MaskUNetError, match="at most 16 seeds"):
        backend.gallery(dataclasses.replace(request_, count=17), silent)
    with pytest.raises(MaskUNetError, match="none yet to keep"):
        backend.save_masks(None, "a")
    with pytest.raises(MaskUNetError, match="none yet to keep"):
        backend.save_analysis(None, "a")
    with pytest.raises(MaskUNetError, match="an analysis among density, random"):
        backend.analyse("beauty", request_, silent)
    with pytest.raises(MaskUNetError, match="at least one model"):
        OfferedModels([], [], [], backend.folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(MaskUNetError, match="a folder that can be written"):
        ResultsFolder(tmp_path / "file")


def test_names_are_short_and_tell_apart(make_backend: BackendFactory, offered: Path) -> None:
    folder = ResultsFolder(offered / "files")
    models = OfferedModels(["shapes", "a/tiny", "b/tiny"], ["shapes", "hub/one"], [], folder, device="cpu")
    assert models.names == ["shapes", "tiny", "tiny (2)"]
    assert models.masker_names() == ["shapes-masker", "one"]
    assert models.is_bundled("shapes")
    assert OfferedModels(["shapes"], [], [], folder, device="cpu").masker_names() == ["shapes-masker"]


@pytest.mark.parametrize(
    ("text", "name"),
    [("a red circle", "a-red-circle"), ("../..//x", "x"), ("", "masks"), ("...", "masks"), ("é" * 9, "masks"),
     ("a" * 99, "a" * 60), (".hidden", "hidden"), ("CON: a/b\\c", "CON-a-b-c")],
)  # fmt: skip
def test_file_names_are_safe(text: str, name: str) -> None:
    assert safe_name(text) == name


def test_of_waiting_states_only_the_latest_is_shown() -> None:
    from queue import SimpleQueue

    shown: SimpleQueue[Any] = SimpleQueue()
    states = [SearchProgress(share) for share in (0.1, 0.2, 0.3)]
    for item in (*states, None):
        shown.put(item)
    assert list(latest_states(shown)) == states[2:]
    for item in (states[0], ValueError("x"), None):
        shown.put(item)
    with pytest.raises(ValueError, match="x"):
        list(latest_states(shown))
