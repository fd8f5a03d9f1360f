"""Recipes: their settings, and how they are written to a run's `config.json`.

Every field is a command-line option.
"""

import dataclasses
import pathlib
import string
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
import tyro
from jax.sharding import Mesh

from jaxmeta import _checks, base, models
from jaxmeta.recipes import _learner_settings, _optimizer_settings, _task_settings


class _ProtocolFormatter(string.Formatter):
    """Formats what there is: a summary must not fail when all is trained."""

    def get_field(self, field_name, args, kwargs):
        try:
            return super().get_field(field_name, args, kwargs)
        except (AttributeError, LookupError):
            return f"{{{field_name}}}", field_name

    def format_field(self, value, format_spec):
        try:
            return super().format_field(value, format_spec)
        except (TypeError, ValueError):  # None, or a name, is no number.
            return str(value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """Settings of meta-training that every recipe has."""

    summary: tyro.conf.Suppress[str]
    published: tyro.conf.Suppress[str]
    """The number in the literature."""
    protocol: tyro.conf.Suppress[str]
    """How ours is measured, and where that differs from the paper; settings by name in
    braces, see `describe_protocol`."""
    outer_optimizer: Literal["adam", "sgd"] = "adam"
    """Optimizer of the meta-parameters."""
    outer_learning_rate: float = 1e-3
    """Its learning rate."""
    cosine: bool = False
    """Decay the outer learning rate to zero along a cosine."""
    clip: float | None = None
    """Clip meta-gradients to this norm."""
    steps: int = 10_000
    """Meta-steps."""
    log_every: int = 50
    """Meta-steps between records; they run in one dispatch."""
    validate_every: int = 500
    """Meta-steps between validations and checkpoints; a multiple of --log-every."""
    patience: int | None = None
    """Stop after this many validations without a lower loss."""
    seed: int = 0
    """Seed of all randomness."""
    start: pathlib.Path | None = None
    """Saved meta-parameters, or a run whose best to start from; None draws them."""

    def check(self) -> None:
        """Raises ValueError for invalid settings."""
        _checks.check_intervals(
            num_steps=self.steps,
            log_every=self.log_every,
            validate_every=self.validate_every,
            patience=self.patience,
        )
        _checks.check_seed("seed", self.seed)
        _checks.check_positive("outer_learning_rate", self.outer_learning_rate)
        if self.clip is not None:
            _checks.check_positive("clip", self.clip)

    def describe_protocol(self) -> str:
        """The protocol with these settings in place of their names.

        Names of settings that a replaced part does not have stay in their braces.
        """
        return _ProtocolFormatter().vformat(self.protocol, (), vars(self))

    def make_outer_tx(self, share: float = 1.0) -> optax.GradientTransformation:
        """Builds the outer update, of which a meta-step makes `share` on average."""
        rate = self.outer_learning_rate
        if self.cosine:
            rate = optax.cosine_decay_schedule(rate, max(1, round(share * self.steps)))
        outer_tx = {"adam": optax.adam, "sgd": optax.sgd}[self.outer_optimizer](rate)
        if self.clip is None:
            return outer_tx
        return optax.chain(optax.clip_by_global_norm(self.clip), outer_tx)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe(Training):
    """A named experiment: a learner over tasks."""

    tasks: _task_settings.Tasks | _task_settings.PolicyTasks
    model: _task_settings.ModelSettings
    learner: _learner_settings.AnyLearner
    num_tasks: int = 32
    """Tasks per meta-step (the meta-batch)."""
    tasks_per_chunk: int | None = None
    """Tasks per `vmap`; None chooses by device and network."""
    validation_tasks: int = 200
    """Tasks per validation, always the same."""
    test_tasks: int = 1000
    """Tasks in the test."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type the model computes in; meta-parameters keep theirs."""

    def check(self) -> None:
        """Raises ValueError for invalid settings."""
        super().check()
        for name in ("num_tasks", "validation_tasks", "test_tasks"):
            _checks.check_int(name, getattr(self, name))
        if self.learner.test_inner_steps is not None:
            _checks.check_int("test_inner_steps", self.learner.test_inner_steps)
        is_policy = isinstance(self.learner, _learner_settings.PolicyMamlLearner)
        if is_policy != isinstance(self.tasks, _task_settings.PolicyTasks):
            raise ValueError(
                f"`learner` must suit the tasks, got {type(self.learner).__name__} for "
                f"{type(self.tasks).__name__}: policies are for environments."
            )

    def make_learner(
        self,
        statistics: _task_settings.Statistics = "batch",
        inner_steps: int | None = None,
    ) -> base.MetaLearner:
        """Builds the learner.

        Args:
          statistics: how predictions are normalised.
          inner_steps: of its `adapt`; None is what it is trained with.
        """
        num_outputs = None if self.learner.embeds else self.tasks.num_outputs
        model = self.model.make(num_outputs, statistics)
        if self.compute_dtype == "bfloat16":
            model = models.with_compute_dtype(model)
        learner = self.learner.with_inner_steps(inner_steps)
        if isinstance(self.tasks, _task_settings.PolicyTasks):
            return learner.make_policy(model, self.tasks.environment)
        return learner.make(model, self.tasks.loss)

    def make_train_step(
        self, learner: base.MetaLearner, sample_task: base.SampleTask, mesh: Mesh
    ) -> base.TrainStep:
        """Builds the meta-step over a batch of tasks."""
        return self.learner.train_step(
            learner,
            sample_task,
            self.make_outer_tx(self.learner.updates_per_step),
            num_tasks=self.num_tasks,
            tasks_per_chunk=self.tasks_per_chunk,
            mesh=mesh,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerRecipe(Training):
    """A named experiment: a learned optimizer over problems."""

    problem: _optimizer_settings.Problem
    optimizer: _optimizer_settings.Optimizer
    estimator: _optimizer_settings.Estimator
    validation_problems: int = 100
    """Problems per validation, always the same."""
    test_problems: int = 1000
    """Problems in the test."""
    test_steps: int = 100
    """Updates per run in validation and test."""
    problems_per_chunk: int | None = None
    """Problems a device validates or tests side by side; None is all."""
    curriculum: tuple[int, ...] = ()
    """Horizons, each for an equal share of the meta-steps; none keeps --horizon."""
    imitation: float = 0.0
    """Share of meta-steps that imitate Adam."""
    teacher_rate: float = 0.01
    """Learning rate of that Adam."""
    scaling: float | None = None
    """Meta-train on randomly scaled problems, factors up to exp of this."""

    def check(self) -> None:
        """Raises ValueError for invalid settings."""
        super().check()
        for name in ("validation_problems", "test_problems", "test_steps"):
            _checks.check_int(name, getattr(self, name))
        if self.problems_per_chunk is not None:
            _checks.check_int("problems_per_chunk", self.problems_per_chunk)
        truncates = hasattr(self.estimator, "unroll")
        if not truncates and (self.curriculum or self.imitation):
            raise ValueError(
                "`curriculum` and `imitation` must be left out where runs are not "
                f"truncated, got {self.curriculum} and {self.imitation}: use the "
                "estimator's shortest and longest."
            )
        for horizon in self.curriculum:
            _checks.check_int("curriculum", horizon)
            if horizon % self.estimator.unroll:
                raise ValueError(
                    "`curriculum` must be multiples of `unroll`, "
                    f"{self.estimator.unroll}, got {horizon}."
                )
        if not 0 <= self.imitation <= 1:
            raise ValueError(
                f"`imitation` must be a share in [0, 1], got {self.imitation}."
            )
        _checks.check_positive("teacher_rate", self.teacher_rate)

    def horizon(self) -> Callable[[jax.Array], jax.Array] | None:
        """The curriculum as a function of the meta-step, if there is one."""
        if not self.curriculum:
            return None
        num_stages = len(self.curriculum)

        def horizon(step):
            stage = jnp.minimum(step * num_stages // self.steps, num_stages - 1)
            return jnp.array(self.curriculum)[stage]

        return horizon


_KINDS = {
    part.__name__: part
    for part in (
        *typing.get_args(_task_settings.Tasks),
        *typing.get_args(_task_settings.PolicyTasks),
        *typing.get_args(_task_settings.ModelSettings),
        *typing.get_args(_learner_settings.AnyLearner),
        *typing.get_args(_optimizer_settings.Problem),
        *typing.get_args(_optimizer_settings.Optimizer),
        *typing.get_args(_optimizer_settings.Estimator),
        Recipe,
        OptimizerRecipe,
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
    for field in dataclasses.fields(_KINDS[kind]):
        if field.type == pathlib.Path | None and fields.get(field.name):
            fields[field.name] = pathlib.Path(fields[field.name])
    return _KINDS[kind](**fields)  # pyright: ignore
