"""The rewards of a search as they come in, as a chart of the page."""

from __future__ import annotations

from collections.abc import Sequence

from ..charts import line_chart


def reward_curve(rewards: Sequence[float], base_reward: float | None, name: str) -> str:
    """Return a chart of rewards by trial.

    Args:
        rewards: the rewards so far, one per trial.
        base_reward: reward of the image without the search, a dashed line; None for no line.
        name: name of the reward.
    """
    caption = f"Reward ({name}) of the predicted image: {len(rewards)} trials"
    caption += f", now {rewards[-1]:.4f}" if rewards else ""
    caption += "" if base_reward is None else f"; without the search {base_reward:.4f}"
    return line_chart(
        {"with masks": list(enumerate(rewards))},
        caption=caption,
        reference=None if base_reward is None else ("without the search", base_reward),
        x_ticks=False,
    )
