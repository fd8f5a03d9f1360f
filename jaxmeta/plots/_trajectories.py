"""Trajectories of policies before and after adaptation."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np

from jaxmeta import _axes, _checks, rl

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def trajectories(
    rollouts: "Sequence[rl.Rollout]",
    *,
    goal: "jax.typing.ArrayLike | None" = None,
    labels: Sequence[str] = ("before", "after"),
    num_episodes: int = 5,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draws the trajectories of policies in the plane, one color per policy.

    Args:
      rollouts: one per policy; the first two features of observations are the position.
      goal: [2], marked by a star.
      labels: names of the policies.
      num_episodes: maximum number of episodes per policy.
      ax: axes to draw on; None makes a figure.

    Raises:
      ValueError: if observations have fewer than two features, or there are fewer
        labels than rollouts.
      ImportError: if matplotlib is not installed.

    Example:
      >>> import jax, jax.numpy as jnp, jaxmeta as jm
      >>> env, key = jm.rl.navigation(horizon=3), jax.random.key(0)
      >>> policy = jm.rl.gaussian_policy(jm.models.MLP([2]))
      >>> params = policy.init(key, jnp.ones((1, 2)))
      >>> found = jm.rl.rollout(key, policy, params, env, jnp.ones(2), num_episodes=2)
      >>> [line.get_label() for line in trajectories([found], labels=["a"]).lines]
      ['a', '_nolegend_']
    """
    _checks.check_int("num_episodes", num_episodes)
    if len(labels) < len(rollouts):
        raise ValueError(
            f"`labels` must name each of the {len(rollouts)} rollouts, got {labels}."
        )
    ax = _axes.figure().subplots() if ax is None else ax
    colors = (_axes.LIGHT, _axes.DARK, "0.5")
    for k, (found, label) in enumerate(zip(rollouts, labels, strict=False)):
        places, mask = np.asarray(found.observations), np.asarray(found.mask)
        if places.ndim != 3 or places.shape[-1] < 2:
            raise ValueError(
                f"`rollouts` must observe a position [B, H, 2], got {places.shape}."
            )
        for b in range(min(num_episodes, len(places))):
            walk = places[b, mask[b], :2]
            name = label if b == 0 else "_nolegend_"
            color = colors[k % len(colors)]
            ax.plot(*walk.T, ".-", color=color, markersize=3, linewidth=1, label=name)
    if goal is not None:
        ax.plot(*np.asarray(goal), "*", color="black", markersize=12, label="goal")
    ax.set_xlabel("x")
    ax.set_aspect("equal", adjustable="datalim")
    _axes.finish(ax, "y")
    return ax
