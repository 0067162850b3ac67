"""The page: what is where, and how it looks. Everything is computed by the studio."""

from __future__ import annotations

from typing import Any

import gradio as gr

from .analyses_tab import analyses_tab
from .backend import Studio
from .compare_tab import compare_tab, seeds_tab
from .search_tab import search_tab
from .widgets import AT_ONCE, controls, masker_choices

TITLE = "maskunet: base or masked"
_INTRO = (
    "# Base or masked?\n"
    "The same model draws your prompt twice from the same noise: once as it is, and once with some of its weights switched "
    "off by a mask. Drag the line across the picture to compare. Masks do not make every picture better; *Seeds* shows "
    "several."
)

CSS = """
.gradio-container { max-width: 1180px !important; margin: 0 auto !important; }
.prose p { overflow-wrap: anywhere; }
.reward-curve { position: relative; padding-left: 3.2em; color: var(--body-text-color-subdued); font-size: 13px; }
.reward-curve svg { display: block; width: 100%; height: 180px; overflow: visible; }
.reward-curve svg * { vector-effect: non-scaling-stroke; }
.reward-curve .tick { position: absolute; left: 0; width: 2.8em; text-align: right; transform: translateY(-50%); }
.reward-curve p { margin: 6px 0 0; }
.reward-curve .grid { stroke: var(--border-color-primary); }
.reward-curve .base { stroke: var(--body-text-color-subdued); stroke-dasharray: 5 4; }
.reward-curve .reward { fill: none; stroke: var(--color-accent); stroke-width: 2.5; stroke-linejoin: round; }
.numbers { width: 0; min-width: 100%; overflow: auto; max-height: 420px; font-size: 13px; }  /* 0: asks for no room */
.numbers th, .numbers td { padding: 3px 10px 3px 0; text-align: left; white-space: nowrap; }
.numbers th { position: sticky; top: 0; background: var(--block-background-fill); font-weight: 600; }
#seeds-gallery .grid-wrap { max-height: none; min-height: 0; }
#seeds-gallery .caption-label { max-width: 100%; padding: 1px 6px; font-size: 12px; }
@media (max-width: 640px) {
  #seeds-gallery .grid-container { grid-template-columns: repeat(2, 1fr) !important; }
  .tab-container button { padding-left: 9px !important; padding-right: 9px !important; }
}
"""


def build(studio: Studio) -> gr.Blocks:
    """Side the page of a studio, to be launched with `CSS` and `theme()`."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, 24 * 3600)) as page:
        gr.Markdown(_INTRO)
        with gr.Row():
            with gr.Column(scale=4, min_width=320):
                asked = controls(studio)
            with gr.Column(scale=6, min_width=320), gr.Tabs():
                with gr.Tab("Compare", id="compare"):
                    compare_tab(studio, asked)
                with gr.Tab("Seeds", id="seeds"):
                    seeds_tab(studio, asked)
                with gr.Tab("Search", id="search"):
                    search_tab(studio, asked, page)
                with gr.Tab("Analyses", id="analyses"):
                    analyses_tab(studio, asked)
        page.load(lambda chosen: masker_choices(studio, chosen), asked.masker, asked.masker, **AT_ONCE)
    return page


def theme() -> Any:
    """Return the look: fonts of the reader's own system, quiet colours; nothing is fetched from elsewhere."""
    plain = ("ui-sans-serif", "system-ui", "sans-serif")
    return gr.themes.Base(
        primary_hue="blue", neutral_hue="slate", font=plain, font_mono=("ui-monospace", "monospace")
    ).set(
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_text_color="white",
        block_border_width="1px",
        block_label_text_weight="500",
    )
