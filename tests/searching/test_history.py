"""The history of a search."""

from __future__ import annotations

import json
import math
import time

from maskunet.searching.history import SearchHistory


def test_entries_are_json_values_and_name_samples_that_have_left() -> None:
    history = SearchHistory(3, time.monotonic() - 10)
    history.add(2, 501.0, 1, {0: 0.5, 2: math.nan}, {0: 0.9, 2: 0.8})
    (entry,) = json.loads(json.dumps(history.entries, allow_nan=False))
    assert 10 <= entry.pop("seconds") < 20
    assert entry == {
        "step": 2,
        "timestep": 501.0,
        "iteration": 1,
        "reward": [0.5, None, None],
        "density": [0.9, None, 0.8],
    }


def test_the_latest_means_skip_entries_without_rewards() -> None:
    history = SearchHistory(2, time.monotonic())
    history.add(0, 9.0, 0, {0: math.nan, 1: math.nan}, {0: 1.0, 1: 1.0})
    assert history.latest() == {"reward": "-", "density": "1.0000"}
    history.add(1, 8.0, 0, {0: 0.5, 1: 0.7}, {0: 0.9, 1: 0.8})
    history.add(1, 8.0, 1, {0: math.nan, 1: math.nan}, {0: 0.7, 1: 0.6})
    assert history.latest() == {"reward": "0.6000", "density": "0.6500"}
