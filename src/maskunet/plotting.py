"""One look for every figure: colours that the colour-blind tell apart, markers besides, the same bytes on every run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .errors import DataError

#: Okabe and Ito's colours, black last; each goes with the marker of its place.
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
        rows, columns: panels.
        width, height: size of a panel, in inches.

    Raises:
        DataError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DataError("expected matplotlib for plots, it is not installed; pip install 'maskunet[plots]'") from error
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width * columns, height * rows))
        FigureCanvasAgg(figure)
        return figure, figure.subplots(rows, columns, squeeze=False)


def save_figure(figure: Any, path: Path) -> list[Path]:
    """Write a figure as PNG and as SVG.

    Args:
        figure: from `new_figure`.
        path: file name; its suffix is replaced by `.png` and `.svg`.

    Returns:
        Both paths.
    """
    import matplotlib as mpl

    written = []
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without a date in it, the same data give the same file.
    for suffix, metadata in ((".png", {"Software": None}), (".svg", {"Date": None})):
        target = path.with_suffix(suffix)
        part = target.with_name(target.name + ".part")
        with mpl.rc_context(_STYLE):
            figure.savefig(part, format=suffix[1:], dpi=150, metadata=metadata)
        part.replace(target)
        written.append(target)
    return written


def error_bars(axis: Any, names: list[str], groups: list[list[float]], *, half_widths: list[float]) -> None:
    """Draw a row for each name: the single values, their mean and an interval.

    Args:
        axis: where to draw.
        names: labels, from the top.
        groups: values of each row.
        half_widths: half of each row's interval.
    """
    for row, (values, half) in enumerate(zip(groups, half_widths, strict=True)):
        colour, mean = COLOURS[row % len(COLOURS)], sum(values) / len(values)
        axis.plot(values, [row + 0.18] * len(values), ".", color=colour, markersize=4, alpha=0.7)
        axis.errorbar(mean, row, xerr=half, fmt=MARKERS[row % len(MARKERS)], color=colour, capsize=3, markersize=5)
    axis.locator_params(axis="x", nbins=5)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)


def log_ticks(axis: Any) -> None:
    """Make the y axis logarithmic, with plain numbers at 1, 2, 3 and 5 of each decade."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axis.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axis.yaxis.set_minor_locator(NullLocator())
