"""Line charts of the pages."""

from __future__ import annotations

import itertools
import re

from hypothesis import given
from hypothesis import strategies as st

from maskunet.charts import line_chart, round_ticks


@given(st.floats(-1e4, 1e4), st.floats(1e-3, 1e4))
def test_ticks_are_round_few_and_inside(low: float, width: float) -> None:
    high = low + width
    ticks = round_ticks(low, high)
    assert 2 <= len(ticks) <= 6
    assert all(low - 1e-9 * abs(low) <= tick <= high + 1e-9 * abs(high) for tick in ticks)
    steps = [b - a for a, b in itertools.pairwise(ticks)]
    assert max(steps) - min(steps) < 1e-6 * max(1.0, abs(low), width)


def test_a_chart_holds_every_point_the_reference_and_escaped_names() -> None:
    chart = line_chart(
        {"<b>": [(0, 1.0), (10, 3.0)], "flat": [(0, 2.0), (5, 2.0), (10, 2.0)]},
        caption="y over x",
        reference=("base", 2.5),
    )
    assert "<b>" not in chart
    assert "&lt;b&gt;" in chart
    paths = re.findall(r'<path d="(M[^"]*)" stroke=', chart)
    points = [[tuple(map(float, p.split())) for p in re.split("[ML]", path)[1:]] for path in paths]
    (low, high), flat = points
    assert [x for x, _ in (low, high)] == [0, 100]
    assert low[1] > flat[0][1] > high[1]  # SVG counts downwards
    assert {y for _, y in flat} == {50.0}
    reference = re.search(r'd="M0 ([\d.]+)H100" class="reference"', chart)
    assert reference is not None
    assert high[1] < float(reference[1]) < flat[0][1]


def test_a_chart_of_nothing_is_empty() -> None:
    assert line_chart({"a": []}, caption="c") == ""
    assert "reference" in line_chart({"a": []}, caption="c", reference=("base", 1.0))
