"""The page as people and programs meet it: the real command, a browser, `gradio_client`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from tests.ui.conftest import Server

pytest.importorskip("gradio")
Asked = tuple[Any, ...]
#: model, masker, prompt, steps, guidance, seed
ASKED: Asked = ("shapes", "shapes-masker", "two hearts", 6, 4.0, 3)
DESKTOP, PHONE = (1280, 900), (390, 844)


@pytest.fixture
def make_client(server: Server, tmp_path: Path) -> Callable[[], Any]:
    from gradio_client import Client

    return lambda: Client(server.url, verbose=False, download_files=tmp_path, analytics_enabled=False)


@pytest.fixture
def open_page(browser: Any, server: Server) -> Iterator[Callable[..., Any]]:
    """Open the page at a size; nothing may be asked of another machine, and no script may fail."""
    pages: list[Any] = []
    elsewhere: list[str] = []
    failed: list[str] = []

    def go(size: tuple[int, int] = DESKTOP) -> Any:
        page = browser.new_context(viewport={"width": size[0], "height": size[1]}).new_page()
        page.set_default_timeout(120_000)
        page.on(
            "request", lambda r: None if r.url.startswith((server.url, "data:", "blob:")) else elsewhere.append(r.url)
        )
        page.on("pageerror", lambda error: failed.append(str(error)))
        page.goto(server.url)
        page.wait_for_selector("#compare-run")
        pages.append(page)
        return page

    yield go
    for page in pages:
        page.context.close()
    assert elsewhere == []
    assert failed == []


def pixels(path: str) -> Any:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"), np.int16)


def fits(page: Any) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


def wait_for_text(page: Any, selector: str, text: str) -> str:
    page.wait_for_function(
        "([s, t]) => (document.querySelector(s)?.innerText ?? '').includes(t)", arg=[selector, text]
    )
    return str(page.inner_text(selector))


def fill(page: Any, **fields: Any) -> None:
    for label, value in fields.items():
        page.get_by_label(label, exact=True).fill(str(value))


def test_a_program_compares(make_client: Callable[[], Any]) -> None:
    client = make_client()
    (base, masked), base_words, masked_words, note = client.predict(*ASKED, api_name="/compare")
    assert pixels(base).shape == pixels(masked).shape == (512, 512, 3)
    assert abs(pixels(base) - pixels(masked)).max() > 0
    for words in (base_words, masked_words):
        assert "Reward -0." in words
        assert "Judge:" in words
    assert "Seed 3, 6 steps, guidance 4" in note
    again = client.predict(*ASKED, api_name="/compare")
    assert [(pixels(a) == pixels(b)).all() for a, b in zip(again[0], (base, masked), strict=True)] == [True, True]
    assert again[1:] == (base_words, masked_words, note)
    gallery, words = client.predict(*ASKED, 2, api_name="/seeds")
    assert [shown["caption"].split()[:2] for shown in gallery] == [
        ["3", "base"],
        ["3", "masked"],
        ["4", "base"],
        ["4", "masked"],
    ]
    assert (pixels(gallery[0]["image"]) - pixels(base)).max() <= 3
    assert "of 2 right" in words


def test_two_programs_at_once_do_not_mix(make_client: Callable[[], Any]) -> None:
    asked = [ASKED, ("shapes", "shapes-masker", "a red circle and a blue star", 6, 2.0, 8)]
    clients = [make_client(), make_client()]
    alone = [client.predict(*a, api_name="/compare") for client, a in zip(clients, asked, strict=True)]
    jobs = [clients[i % 2].submit(*asked[i % 2], api_name="/compare") for i in range(6)]
    for i, job in enumerate(jobs):
        found, expected = job.result(timeout=120), alone[i % 2]
        assert found[1:] == expected[1:]
        for a, b in zip(found[0], expected[0], strict=True):
            assert (pixels(a) == pixels(b)).all()


def test_a_program_searches_keeps_and_uses(make_client: Callable[[], Any], server: Server) -> None:
    client = make_client()
    with pytest.raises(Exception, match="none yet to keep"):
        client.predict("x", api_name="/keep")
    job = client.submit(*ASKED, "masks", False, api_name="/search")
    last = job.result(timeout=120)
    assert len(job.outputs()) >= 2
    assert "Done" in last[5]
    chosen, words = client.predict("../My masks", api_name="/keep")
    assert chosen["value"] == "found/My-masks"
    assert "selected as the masker" in words
    assert (server.folder / "found" / "My-masks" / "masks" / "00000" / "config.json").is_file()
    (base, masked), *_ = client.predict(ASKED[0], "found/My-masks", *ASKED[2:], api_name="/compare")
    assert abs(pixels(masked) - pixels(last[1])).max() <= 4
    assert abs(pixels(base) - pixels(last[0])).max() <= 4
    with pytest.raises(Exception, match="none yet to keep"):  # what one found is not another's
        make_client().predict("y", api_name="/keep")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({2: ""}, "Expected a prompt of 1 to 1000 characters, got 0."),
        ({1: "none"}, "Expected a masker to compare the base model with, none is chosen."),
        ({1: "/etc"}, "not in the list of choices"),
        ({5: 2**40}, "(?i)4294967295"),
    ],
)
def test_errors_are_sentences(make_client: Callable[[], Any], changes: dict[int, Any], message: str) -> None:
    with pytest.raises(Exception, match=message):
        make_client().predict(*(changes.get(i, value) for i, value in enumerate(ASKED)), api_name="/compare")


def test_files_stay_in_their_folder(make_client: Callable[[], Any], server: Server) -> None:
    import httpx

    make_client().predict(*ASKED, api_name="/compare")
    assert {p.name for p in server.folder.parent.iterdir()} <= {"page", "log"}
    assert {p.name for p in server.folder.iterdir()} == {"found", "analyses", "cache"}
    for path in (Path(__file__), server.folder.parent / "log", server.folder / "found", "/etc/passwd"):
        answer = httpx.get(f"{server.url}/gradio_api/file={path}", trust_env=False)
        assert answer.status_code in (403, 404), path


def test_a_newcomer_compares_with_one_press(open_page: Callable[..., Any], tmp_path: Path) -> None:
    for size in (DESKTOP, PHONE):
        page = open_page(size)
        assert page.get_by_label("Prompt", exact=True).input_value()
        started = time.monotonic()
        page.get_by_role("button", name="Compare", exact=True).click()
        wait_for_text(page, "#compare-note", "Seed 1")
        print(f"compared in {time.monotonic() - started:.1f} s at {size[0]} px")  # noqa: T201
        assert page.locator("#compare-slider img").count() >= 2
        assert "Reward -0." in page.inner_text("#compare-base")
        assert "Judge: " in page.inner_text("#compare-masked")
        assert fits(page)
        # Dragging the line moves it. It finds its place in the middle only once both pictures are there.
        line = page.locator("#compare-slider .inner")
        page.wait_for_function(
            """() => {
                const images = [...document.querySelectorAll("#compare-slider img")]
                const frame = document.querySelector("#compare-slider").getBoundingClientRect()
                const line = document.querySelector("#compare-slider .inner").getBoundingClientRect()
                return images.every(x => x.complete && x.naturalWidth) && line.x > frame.x + frame.width / 4
            }"""
        )
        line.scroll_into_view_if_needed()
        before = line.bounding_box()
        page.mouse.move(before["x"] + before["width"] / 2, before["y"] + before["height"] / 2)
        page.mouse.down()
        page.mouse.move(before["x"] - 60, before["y"] + before["height"] / 2, steps=4)
        page.mouse.up()
        assert line.bounding_box()["x"] < before["x"] - 20


def test_every_tab_fits_a_phone(open_page: Callable[..., Any]) -> None:
    page = open_page(PHONE)
    fill(page, Steps=4)
    page.get_by_text("a ring above a square", exact=True).click()
    page.wait_for_function("document.querySelector('#prompt textarea').value == 'a ring above a square'")
    page.get_by_role("tab", name="Seeds").click()
    page.get_by_role("button", name="Generate").click()
    wait_for_text(page, "#seeds-note", "Masked")
    assert fits(page)
    page.get_by_role("tab", name="Search").click()
    page.get_by_role("button", name="Search", exact=True).click()
    wait_for_text(page, "#search-status", "Done")
    assert page.locator("#search-curve svg").count() == 1
    assert fits(page)
    page.get_by_role("tab", name="Analyses").click()
    fill(page, **{"Images per side": 2, "Analysis": "density"})
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Analyse", exact=True).click()
    page.wait_for_selector("#analysis-figure img")
    page.get_by_role("button", name="Numbers").click()
    page.wait_for_selector(".numbers td")
    assert fits(page)


def test_a_search_is_stopped_and_what_it_found_is_used(open_page: Callable[..., Any], server: Server) -> None:
    page = open_page()
    fill(page, Steps=40)
    page.get_by_role("tab", name="Search").click()
    page.get_by_label("as in the paper").check()
    page.get_by_role("button", name="Search", exact=True).click()
    wait_for_text(page, "#search-status", "trials")
    page.get_by_role("button", name="Stop").click()
    said = wait_for_text(page, "#search-status", "Stopped")
    assert "the masks found so far are kept" in said
    fill(page, **{"Name for these masks": "early"})
    page.get_by_role("button", name="Keep these masks and use them").click()
    wait_for_text(page, "#search-kept", "found/early")
    assert (server.folder / "found" / "early" / "masks").is_dir()
    assert page.get_by_label("Masker", exact=True).input_value() == "found/early"
    page.get_by_role("tab", name="Compare").click()
    page.get_by_role("button", name="Compare", exact=True).click()
    wait_for_text(page, "#compare-note", "40 steps")


def test_an_error_is_a_sentence_in_the_page(open_page: Callable[..., Any]) -> None:
    page = open_page(PHONE)
    fill(page, Prompt="")
    page.get_by_role("button", name="Compare", exact=True).click()
    toast = page.get_by_text("Expected a prompt of 1 to 1000 characters, got 0.")
    toast.wait_for()
    box = toast.bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= PHONE[0]
    assert fits(page)


def test_two_people_at_the_page_get_their_own(open_page: Callable[..., Any]) -> None:
    pages = [open_page(), open_page()]
    for page, prompt in zip(pages, ("two hearts", "a purple cross"), strict=True):
        fill(page, Prompt=prompt, Steps=6)
    for page in pages:
        page.get_by_role("button", name="Compare", exact=True).click()
    for page, shape in zip(pages, ("heart", "cross"), strict=True):
        wait_for_text(page, "#compare-note", "6 steps")
        assert shape in page.inner_text("#compare-base")
