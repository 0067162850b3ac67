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
from maskunet.attaching.attachment import attachment_of
from maskunet.errors import MaskUNetError
from maskunet.ui.backend import Studio, _latest
from maskunet.ui.loading import Models
from maskunet.ui.requests import Ending, Moment, Request
from maskunet.ui.results_folder import Folder, tidy

Side = Callable[..., Studio]
REWARD = "tests-redness"


def silent(share: float, text: str) -> None:
    """Show nothing."""


def redness(pictures: torch.Tensor, prompts: Any) -> torch.Tensor:
    return pictures[:, 0].mean((1, 2)) - pictures[:, 2].mean((1, 2))


@pytest.fixture
def studio(make_studio: Side, monkeypatch: pytest.MonkeyPatch) -> Studio:
    """A studio whose model is rewarded for red."""
    made = make_studio(REWARD)
    reward = mu.rewards.FunctionReward(redness, "redness")
    monkeypatch.setattr("maskunet.ui.models.parse_reward", lambda described: reward)
    return made


def test_a_pair_is_the_base_model_and_the_masked_one(studio: Studio, request_: Request) -> None:
    told: list[tuple[float, str]] = []
    pair = studio.compare(request_, lambda share, text: told.append((share, text)))
    pipe = studio.models.pipe("tiny")
    options: dict[str, Any] = {"seeds": 5, "num_inference_steps": 3, "guidance_scale": 4.0, "progress": False}
    base = mu.evaluation.generate(pipe, ["a b"], **options).tensor[0]
    mu.attach(pipe, studio.models.masker("masker-1", "tiny"))
    masked = mu.evaluation.generate(pipe, ["a b"], **options).tensor[0]
    assert torch.equal(pair.base.picture, base)
    assert torch.equal(pair.masked.picture, masked)
    assert not torch.equal(base, masked)
    assert pair.seed == 5
    assert pair.masked.reward == pytest.approx(float(redness(masked[None], ["a b"])))
    assert pair.base.verdict is None  # the judge knows the bundled world alone
    shares = [share for share, _ in told]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert {text for _, text in told} == {"Loading", "Drawing the base side", "Drawing the masked side"}


def test_what_was_attached_is_put_back_whatever_happens(studio: Studio, request_: Request) -> None:
    pipe = studio.models.pipe("tiny")
    before = mu.attach(pipe, studio.models.masker("masker-2", "tiny"))
    studio.compare(request_, silent)
    assert attachment_of(pipe) is before

    def fail(share: float, text: str) -> None:
        if share > 0.6:
            raise RuntimeError("gone")

    with pytest.raises(RuntimeError, match="gone"):
        studio.compare(request_, fail)
    assert attachment_of(pipe) is before


def test_two_people_at_once_get_what_they_get_alone(studio: Studio, request_: Request) -> None:
    asked = [request_, dataclasses.replace(request_, masker="masker-2", seed=9, prompt="c d")]
    alone = [studio.compare(a, silent) for a in asked]
    found: dict[int, Any] = {}

    def ask(person: int) -> None:
        found[person] = [studio.compare(asked[person], silent) for _ in range(3)]

    people = [threading.Thread(target=ask, args=(i,)) for i in (0, 1)]
    for person in people:
        person.start()
    for person in people:
        person.join()
    for i in (0, 1):
        for pair in found[i]:
            assert torch.equal(pair.base.picture, alone[i].base.picture)
            assert torch.equal(pair.masked.picture, alone[i].masked.picture)


def test_a_gallery_holds_the_seeds_that_follow(studio: Studio, request_: Request) -> None:
    pairs = studio.gallery(request_, 5, silent)
    assert [pair.seed for pair in pairs] == [5, 6, 7, 8, 9]
    first = studio.compare(request_, silent)
    torch.testing.assert_close(pairs[0].masked.picture, first.masked.picture, atol=1e-4, rtol=0)
    assert not torch.equal(pairs[0].base.picture, pairs[1].base.picture)


def test_a_search_is_shown_kept_and_used_again(studio: Studio, request_: Request, offered: Path) -> None:
    asked = dataclasses.replace(request_, masker=None)
    moments = list(studio.search(asked, "masks", Ending()))
    last = moments[-1]
    for part in ([m.share for m in moments if m.base is None], [m.share for m in moments if m.base is not None]):
        assert part == sorted(part)
    assert all(m.found is None for m in moments[:-1])
    assert last.found is not None
    assert not last.stopped
    assert last.judged is not None
    assert torch.equal(last.judged.picture, last.found.tensor[0])
    assert len(last.curve) == len(last.found.history) == 1 + 5 + 1
    seen = last.found.history[1]["reward"][0]
    assert last.curve[1] == pytest.approx(seen, abs=1e-5)
    # The same as a search by the library.
    config = mu.SearchConfig(num_inference_steps=3, guidance_scale=4.0)
    reward = studio.models.reward("tiny")
    assert reward is not None
    plain = mu.search(studio.models.pipe("tiny"), ["a b"], reward, config, seeds=[5], progress=False)
    assert torch.equal(plain.tensor, last.found.tensor)
    torch.testing.assert_close(plain.base_rewards, last.found.base_rewards)

    name = studio.keep(last.found, "../../My masks!")
    assert name == "found/My-masks"
    assert studio.keep(last.found, "My masks") == "found/My-masks-2"
    assert studio.keep(last.found, "") == "found/a-b"
    assert name in studio.models.masker_names()
    again = studio.compare(dataclasses.replace(asked, masker=name), silent)
    torch.testing.assert_close(again.masked.picture, last.found.tensor[0], atol=1e-4, rtol=1e-4)
    kept = sorted(p.relative_to(offered / "files" / "found").parts[0] for p in (offered / "files" / "found").iterdir())
    assert kept == ["My-masks", "My-masks-2", "a-b"]
    with pytest.raises(MaskUNetError, match="conditional half"):
        list(studio.search(dataclasses.replace(asked, masker=name), "masks", Ending()))


def test_a_search_that_is_stopped_keeps_what_it_found(studio: Studio, request_: Request) -> None:
    ending = Ending()
    moments = []
    for moment in studio.search(dataclasses.replace(request_, steps=12), "paper", ending):
        moments.append(moment)
        if moment.curve:
            ending.stop.set()
    last = moments[-1]
    assert last.stopped
    assert last.found is not None
    assert len(last.curve) < 60  # whole it would be 12 + 7 * 10 or so
    assert studio.keep(last.found, "early") == "found/early"
    with pytest.raises(MaskUNetError, match="stopped before it began"):
        list(studio.search(request_, "masks", ending))


def test_a_search_that_nobody_watches_ends(studio: Studio, request_: Request) -> None:
    ending = Ending()
    watched = studio.search(dataclasses.replace(request_, steps=200), "paper", ending)
    next(watched)
    watched.close()
    assert ending.leave.is_set()
    assert studio.compare(request_, silent).seed == 5  # the next one's turn comes
    assert attachment_of(studio.models.pipe("tiny")) is None


def test_analyses_see_the_masker_that_was_asked_for(studio: Studio, request_: Request) -> None:
    found = studio.analyse("density", request_, 7, silent)
    assert studio.analyses.attached == [studio.models.masker("masker-1", "tiny")]
    assert found.settings == {
        "prompts": ("a b",), "num_inference_steps": 3, "guidance_scale": 4.0, "seed": 5, "count": 7,
    }  # fmt: skip
    assert attachment_of(studio.models.pipe("tiny")) is None
    folder = studio.keep_analysis(found, "density/masker-1")
    assert [p.name for p in folder.iterdir()] == ["how.csv"]
    assert folder.name == "density-masker-1"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "  "}, "a prompt of 1 to"),
        ({"prompt": "x" * 2000}, "got 2000"),
        ({"steps": 0}, "steps from 1 to 200, got 0"),
        ({"steps": None}, "got nothing"),
        ({"steps": 2.5}, "a whole number for steps"),
        ({"guidance_scale": "much"}, "got 'much'"),
        ({"guidance_scale": float("nan")}, "guidance from 0"),
        ({"seed": -1}, "the seed from 0"),
        ({"model": "/etc"}, "a model among tiny, got '/etc'"),
        ({"masker": "/etc"}, "a masker among masker-1, masker-2, got '/etc'"),
        ({"masker": "found/../../masker-1"}, "a masker among"),
        ({"masker": None}, "none is chosen"),
    ],
)
def test_what_cannot_be_done_is_said(studio: Studio, request_: Request, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(MaskUNetError, match=message):
        studio.compare(dataclasses.replace(request_, **changes), silent)


def test_other_refusals(make_studio: Side, request_: Request, offered: Path, tmp_path: Path) -> None:
    studio = make_studio()
    with pytest.raises(MaskUNetError, match="--reward"):
        list(studio.search(request_, "masks", Ending()))
    with pytest.raises(MaskUNetError, match="a preset"):
        list(studio.search(request_, "best", Ending()))
    with pytest.raises(MaskUNetError, match="number of seeds from 1 to 16"):
        studio.gallery(request_, 17, silent)
    with pytest.raises(MaskUNetError, match="none yet to keep"):
        studio.keep(None, "a")
    with pytest.raises(MaskUNetError, match="none yet to keep"):
        studio.keep_analysis(None, "a")
    with pytest.raises(MaskUNetError, match="an analysis among density, random"):
        studio.analyse("beauty", request_, 3, silent)
    with pytest.raises(MaskUNetError, match="at least one model"):
        Models([], [], [], studio.folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(MaskUNetError, match="a folder that can be written"):
        Folder(tmp_path / "file")


def test_names_are_short_and_tell_apart(make_studio: Side, offered: Path) -> None:
    folder = Folder(offered / "files")
    models = Models(["shapes", "a/tiny", "b/tiny"], ["shapes", "hub/one"], [], folder, device="cpu")
    assert models.names == ["shapes", "tiny", "tiny (2)"]
    assert models.masker_names() == ["shapes-masker", "one"]
    assert models.is_bundled("shapes")
    assert Models(["shapes"], [], [], folder, device="cpu").masker_names() == ["shapes-masker"]


@pytest.mark.parametrize(
    ("given", "made"),
    [("a red circle", "a-red-circle"), ("../..//x", "x"), ("", "masks"), ("...", "masks"), ("é" * 9, "masks"),
     ("a" * 99, "a" * 60), (".hidden", "hidden"), ("CON: a/b\\c", "CON-a-b-c")],
)  # fmt: skip
def test_tidy_names(given: str, made: str) -> None:
    assert tidy(given) == made


def test_moments_that_wait_are_passed_over() -> None:
    from queue import SimpleQueue

    shown: SimpleQueue[Any] = SimpleQueue()
    moments = [Moment(share) for share in (0.1, 0.2, 0.3)]
    for item in (*moments, None):
        shown.put(item)
    assert list(_latest(shown)) == moments[2:]
    for item in (moments[0], ValueError("x"), None):
        shown.put(item)
    with pytest.raises(ValueError, match="x"):
        list(_latest(shown))
