"""The page: its layout and its look. The backend computes everything."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ..charts import CHART_CSS
from .analyses_tab import analyses_tab
from .backend import Backend
from .compare_tab import compare_tab, seeds_tab
from .search_tab import search_tab
from .widgets import AT_ONCE, build_controls, masker_choices

TITLE = "maskunet: base or masked"
_INTRO = (
    "# Base or masked?\n"
    "The same model generates your prompt twice from the same noise: once as it is, and once with some of its weights "
    "switched off by a mask. Drag the line across the image to compare. Masks do not make every image better; *Seeds* shows "
    "several."
)

CSS = (
    CHART_CSS
    + """
.gradio-container { max-width: 1180px !important; margin: 0 auto !important; }
.prose p { overflow-wrap: anywhere; }
.numbers { width: 0; min-width: 100%; overflow: auto; max-height: 420px; font-size: 13px; } /* claims no width */
.numbers th, .numbers td { padding: 3px 10px 3px 0; text-align: left; white-space: nowrap; }
.numbers th { position: sticky; top: 0; background: var(--block-background-fill); font-weight: 600; }
#seeds-gallery .grid-wrap { max-height: none; min-height: 0; }
#seeds-gallery .caption-label { max-width: 100%; padding: 1px 6px; font-size: 12px; }
@media (max-width: 640px) {
  #seeds-gallery .grid-container { grid-template-columns: repeat(2, 1fr) !important; }
  .tab-container button { padding-left: 9px !important; padding-right: 9px !important; }
}
"""
)


def build(backend: Backend) -> gr.Blocks:
    """Build the page, to be launched with `CSS` and `theme()`.

    Args:
        backend: what the page computes with.
    """
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, 24 * 3600)) as page:
        gr.Markdown(_INTRO)
        with gr.Row():
            with gr.Column(scale=4, min_width=320):
                controls = build_controls(backend)
            with gr.Column(scale=6, min_width=320), gr.Tabs():
                with gr.Tab("Compare", id="compare"):
                    compare_tab(backend, controls)
                with gr.Tab("Seeds", id="seeds"):
                    seeds_tab(backend, controls)
                with gr.Tab("Search", id="search"):
                    search_tab(backend, controls, page)
                with gr.Tab("Analyses", id="analyses"):
                    analyses_tab(backend, controls)
        page.load(lambda name: masker_choices(backend, name), controls.masker, controls.masker, **AT_ONCE)
    return page


def theme() -> Any:
    """Return the look: the system's own fonts, quiet colours; nothing is fetched from elsewhere."""
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
