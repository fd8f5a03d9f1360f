"""Recipes: their settings, and how they are written to a run's `config.json`.

Every field is a command-line option.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import optax
import tyro

from jaxmeta import _checks, base, training
from jaxmeta.recipes import _settings


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A named experiment."""

    summary: tyro.conf.Suppress[str]
    published: tyro.conf.Suppress[str]
    """The number in the literature."""
    protocol: tyro.conf.Suppress[str]
    """How ours is measured, and where that differs from the paper."""
    tasks: _settings.Tasks
    model: _settings.MlpModel | _settings.Conv4Model
    learner: _settings.MamlLearner
    num_tasks: int = 32
    """Tasks a meta-step (the meta-batch)."""
    tasks_per_chunk: int | None = None
    """Tasks through `vmap` at once; by device and network when left out."""
    outer_learning_rate: float = 1e-3
    """Of Adam, over the meta-parameters."""
    cosine: bool = False
    """Let the outer learning rate fall to zero along a cosine."""
    steps: int = 10_000
    """Meta-steps."""
    log_every: int = 50
    """Meta-steps between records; they run in one dispatch."""
    validate_every: int = 500
    """Meta-steps between validations and checkpoints; a multiple of --log-every."""
    validation_tasks: int = 200
    """Tasks of a validation, the same ones every time."""
    patience: int | None = None
    """Stop after this many validations in a row without a better loss."""
    test_tasks: int = 1000
    """Tasks of the test."""
    seed: int = 0
    """Decides everything random."""

    def check(self) -> None:
        """Raises ValueError for settings that cannot be."""
        training.check_counts(
            num_steps=self.steps,
            log_every=self.log_every,
            validate_every=self.validate_every,
            patience=self.patience,
        )
        for name in ("num_tasks", "validation_tasks", "test_tasks"):
            _checks.check_int(name, getattr(self, name))
        _checks.check_int("test_inner_steps", self.learner.test_inner_steps)
        _checks.check_positive("outer_learning_rate", self.outer_learning_rate)

    def make_learner(
        self, statistics: _settings.Statistics = "batch", inner_steps: int | None = None
    ) -> base.MetaLearner:
        """Builds the learner.

        Args:
          statistics: how predictions are normalised.
          inner_steps: of its `adapt`; None is what it is trained with.
        """
        model = self.model.make(self.tasks.num_outputs, statistics)
        learner = self.learner
        if inner_steps is not None:
            learner = dataclasses.replace(learner, inner_steps=inner_steps)
        return learner.make(model, self.tasks.loss)

    def make_outer_tx(self) -> optax.GradientTransformation:
        """Builds the outer update."""
        rate = self.outer_learning_rate
        if self.cosine:
            rate = optax.cosine_decay_schedule(rate, self.steps)
        return optax.adam(rate)


_KINDS = {
    part.__name__: part
    for part in (
        _settings.SinusoidTasks,
        _settings.GlyphTasks,
        _settings.OmniglotTasks,
        _settings.MlpModel,
        _settings.Conv4Model,
        _settings.MamlLearner,
        Recipe,
    )
}


def to_json(part: Any) -> Any:
    """Turns a recipe, or a part of one, into what `json` can write."""
    if dataclasses.is_dataclass(part):
        fields = {f.name: getattr(part, f.name) for f in dataclasses.fields(part)}
        return {"kind": type(part).__name__} | {
            k: to_json(v) for k, v in fields.items()
        }
    return str(part) if isinstance(part, pathlib.Path) else part


def from_json(value: Any) -> Any:
    """Undoes `to_json`.

    Raises:
      ValueError: for a kind or a field this version does not know.
    """
    if not isinstance(value, Mapping):
        return tuple(value) if isinstance(value, list) else value
    value = dict(value)
    kind = value.pop("kind", None)
    if kind not in _KINDS:
        raise ValueError(f"`kind` must be one of {sorted(_KINDS)}, got {kind!r}.")
    known = {field.name for field in dataclasses.fields(_KINDS[kind])}
    if unknown := set(value) - known:
        raise ValueError(
            f"{kind} has no field {sorted(unknown)}, only {sorted(known)}."
        )
    fields = {name: from_json(item) for name, item in value.items()}
    if fields.get("data_dir"):
        fields["data_dir"] = pathlib.Path(fields["data_dir"])
    return _KINDS[kind](**fields)
