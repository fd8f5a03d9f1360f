"""Shared by all plots: figures without pyplot, colors, labels and legends."""

import os
import pathlib
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxmeta import _json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# They differ in lightness too, for greyscale prints.
DARK, LIGHT = "#1b4f8a", "#e08214"


def figure(width: float = 5.0) -> "Figure":
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Plots require matplotlib: pip install matplotlib") from error
    return Figure((width, 3.5), layout="constrained")


def read_test(run: str | os.PathLike[str]) -> dict[str, Any]:
    """Test results of a run folder, those of the initial meta-parameters in them."""
    summary = _json.loads((pathlib.Path(run) / "summary.json").read_text())
    return summary["test"] | {k: v for k, v in summary.items() if k == "untrained"}


def labels_of(targets: Any) -> np.ndarray:
    """Integer labels [N] of class targets; -1 for padding (all-zero one-hot rows)."""
    targets = np.asarray(targets)
    if targets.ndim != 2:
        return targets
    return np.where(targets.any(1), targets.argmax(1), -1)


def colors(count: int) -> list[str]:
    """DARK, LIGHT and greys, one for each of `count` curves."""
    greys = [str(0.25 + 0.45 * i / max(1, count - 3)) for i in range(count - 2)]
    return [DARK, LIGHT, *greys][:count]


def finish(ax, name, curves=(), **legend):
    """Labels y, adds the legend, and a log axis if the losses of `curves` span it."""
    ax.set_ylabel(f"{name} (%)" if name.startswith("accuracy") else name)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", which="both", color="0.9")
    ax.set_axisbelow(True)
    sizes = {"fontsize": "small", "title_fontsize": "small"}
    ax.legend(frameon=False, handlelength=3, **sizes, **legend)
    finite = [y for curve in curves for y in curve if np.isfinite(y)]
    if name == "loss" and finite and 0 < 10 * min(finite) < max(finite):
        # Minor labels fit for at most three decades.
        ax.set_yscale("log", subs=[2, 5] if max(finite) < 1e3 * min(finite) else [])
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter("{x:g}")


def fit_to_sheets(figure):
    """Sizes the figure of a row of sheets so that a class is 0.45 inches high."""
    height, width, _ = figure.axes[0].images[0].get_array().shape
    scale = 0.45 * len(figure.axes[0].get_yticks()) / height
    figure.set_size_inches(
        len(figure.axes) * (scale * width + 0.6), scale * height + 0.6
    )
