"""Run folders: a trained recipe to resume, evaluate, adapt and plot.

A folder holds `config.json` (the recipe), `metrics.jsonl`, `checkpoints/`,
`summary.json` once trained, and `plots/`.
"""

from jaxmeta.runs._adapt import Prediction, adapt
from jaxmeta.runs._build import build
from jaxmeta.runs._evaluate import evaluate
from jaxmeta.runs._folder import (
    Run,
    best_meta_params,
    read,
    read_records,
    read_summary,
)
from jaxmeta.runs._lake import lake
from jaxmeta.runs._parts import Parts
from jaxmeta.runs._plot import draw_walks, plot
from jaxmeta.runs._train import resume, train

__all__ = [
    "Parts",
    "Prediction",
    "Run",
    "adapt",
    "best_meta_params",
    "build",
    "draw_walks",
    "evaluate",
    "lake",
    "plot",
    "read",
    "read_records",
    "read_summary",
    "resume",
    "train",
]
