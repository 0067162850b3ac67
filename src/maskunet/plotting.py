"""One look for every figure: colour-blind-safe colours, each with its own marker, and the same bytes on every run."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .errors import DataError
from .files import make_folder, save_whole

#: Okabe and Ito's colours, black last; colour k goes with marker k.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

_STYLE: dict[Any, Any] = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "svg.hashsalt": "maskunet",
}


def new_figure(rows: int = 1, columns: int = 1, *, width: float = 4.2, height: float = 3.2) -> tuple[Any, Any]:
    """Return a figure and its axes (rows, columns), drawn without a display.

    Args:
        rows: rows of panels.
        columns: columns of panels.
        width: width of a panel, in inches.
        height: height of a panel, in inches.

    Raises:
        DataError: matplotlib is not installed.
    """
    with _new(width * columns, height * rows) as figure:
        return figure, figure.subplots(rows, columns, squeeze=False)


def new_mosaic(layout: str, *, width: float = 4.2, heights: Sequence[float] = (3.2,)) -> tuple[Any, dict[str, Any]]:
    """Return a figure and its axes by letter, where a panel may span columns or rows.

    Args:
        layout: rows of letters, such as "AAB;CDD"; "." is an empty cell.
        width: width of a column, in inches.
        heights: heights of the rows, in inches.

    Raises:
        DataError: matplotlib is not installed.
    """
    columns = len(layout.split(";")[0])
    with _new(width * columns, sum(heights)) as figure:
        return figure, figure.subplot_mosaic(layout, gridspec_kw={"height_ratios": list(heights)})


@contextlib.contextmanager
def _new(width: float, height: float) -> Iterator[Any]:
    """Yield an empty figure, with the style on while its axes are made."""
    try:
        import matplotlib as mpl
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DataError("expected matplotlib for plots, it is not installed; pip install 'maskunet[plots]'") from error
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height))
        FigureCanvasAgg(figure)
        yield figure


def save_figure(figure: Any, path: Path, formats: Sequence[str] = ("png", "svg")) -> list[Path]:
    """Write a figure, each file atomically; the same data give the same bytes.

    Args:
        figure: from `new_figure`.
        path: the file; its suffix is replaced by each format's.
        formats: "png", "svg" or both.

    Returns:
        The paths, in the order of `formats`.

    Raises:
        DataError: a file cannot be written.
    """
    import matplotlib as mpl

    make_folder(path.parent)
    metadata = {"png": {"Software": None}, "svg": {"Date": None}}  # no version and no date

    def write(part: Path, kind: str) -> None:
        with mpl.rc_context(_STYLE):
            figure.savefig(part, format=kind, dpi=150, metadata=metadata[kind])

    paths = [path.with_suffix(f".{kind}") for kind in formats]
    for target, kind in zip(paths, formats, strict=True):
        save_whole(target, functools.partial(write, kind=kind))
    return paths


def error_bars(axis: Any, names: list[str], groups: list[list[float]], *, half_widths: list[float]) -> None:
    """Draw one row per name: the single values, their mean and an interval.

    Args:
        axis: the axes to draw on.
        names: labels of the rows, from the top.
        groups: values of each row.
        half_widths: half-width of each row's interval.
    """
    for row, (values, half) in enumerate(zip(groups, half_widths, strict=True)):
        colour, mean = COLOURS[row % len(COLOURS)], sum(values) / len(values)
        axis.plot(values, [row + 0.18] * len(values), ".", color=colour, markersize=4, alpha=0.7)
        axis.errorbar(mean, row, xerr=half, fmt=MARKERS[row % len(MARKERS)], color=colour, capsize=3, markersize=5)
    axis.locator_params(axis="x", nbins=5)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)


def log_ticks(axis: Any) -> None:
    """Make the y axis logarithmic, with plain numbers at 1, 2, 3 and 5 of each decade.

    Args:
        axis: the axes.
    """
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axis.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axis.yaxis.set_minor_locator(NullLocator())


def band(
    axis: Any,
    x: Sequence[float],
    values: Sequence[float],
    low: Sequence[float],
    high: Sequence[float],
    *,
    number: int,
    colour: str | None = None,
    **options: Any,
) -> None:
    """Draw a line with its interval as a band; nothing is shaded where a bound is NaN.

    Args:
        axis: the axes to draw on.
        x: positions of the points.
        values: their values.
        low: lower bounds.
        high: upper bounds.
        number: index into `COLOURS` and `MARKERS`.
        colour: replaces the indexed colour.
        options: options of the line, such as `label`.
    """
    colour, marker = colour or COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
    axis.plot(x, values, **{"color": colour, "marker": marker, "markersize": 3.5, "linewidth": 1.2} | options)
    axis.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)


def show_image(axis: Any, image: Any, title: str = "", **options: Any) -> None:
    """Draw an image without ticks or grid.

    Args:
        axis: the axes to draw on.
        image: array (H, W), or (H, W, 3) in [0, 1].
        title: text above it.
        options: options of `imshow`.
    """
    axis.imshow(image, **{"interpolation": "nearest"} | options)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.grid(False)
    for spine in axis.spines.values():
        spine.set_visible(False)
    axis.set_title(title, fontsize=8)
