"""What a recipe is made of: plain dataclasses, each of which builds its part.

Every field is a command-line option, and all of them go to the run's `config.json`.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import optax
import tyro

from jaxmeta import (
    _checks,
    base,
    learners,
    losses,
    models,
    optimizers,
    tasks,
    training,
)

Statistics = Literal["batch", "support"]


class TaskSplits(NamedTuple):
    """Task samplers for meta-training, validation and test."""

    train: base.SampleTask
    validation: base.SampleTask
    test: base.SampleTask


@dataclasses.dataclass(frozen=True)
class SinusoidTasks:
    """Sinusoids of random amplitude and phase."""

    shots: int = 10
    """Support points a task."""
    queries: int = 10
    """Query points a task in training."""
    test_shots: int = 5
    """Support points a task in validation and test."""
    test_queries: int = 100
    """Query points a task in validation and test."""

    loss = staticmethod(losses.squared_error)
    num_outputs = 1

    def splits(self) -> TaskSplits:
        """Builds the samplers; train and test tasks differ in their keys."""
        test = tasks.sinusoid(shots=self.test_shots, queries=self.test_queries)
        train = tasks.sinusoid(shots=self.shots, queries=self.queries)
        return TaskSplits(train, test, test)


@dataclasses.dataclass(frozen=True)
class GlyphTasks:
    """Invented characters, drawn on the device; no download."""

    ways: int = 5
    """Classes a task."""
    shots: int = 1
    """Support examples a class."""
    queries: int = 5
    """Query examples a class in training."""
    test_queries: int = 15
    """Query examples a class in validation and test."""
    size: int = 28
    """Height and width of the images, in pixels."""

    loss = staticmethod(losses.cross_entropy)

    @property
    def num_outputs(self) -> int:
        """Logits of the model."""
        return self.ways

    def splits(self) -> TaskSplits:
        """Builds the samplers; train and test tasks differ in their keys."""
        settings = {"ways": self.ways, "shots": self.shots, "size": self.size}
        test = tasks.glyphs(queries=self.test_queries, **settings)
        return TaskSplits(tasks.glyphs(queries=self.queries, **settings), test, test)


@dataclasses.dataclass(frozen=True)
class OmniglotTasks:
    """Handwritten characters of 50 alphabets, through tensorflow-datasets."""

    data_dir: pathlib.Path | None = None
    """Where tensorflow-datasets keeps its data; its own default when left out."""
    split: Literal["random", "vinyals", "lake"] = "random"
    """Which characters are for training: 1,200 at random (MAML), by Vinyals' list, or
    Lake's background alphabets."""
    ways: int = 5
    """Classes a task."""
    shots: int = 1
    """Support examples a class."""
    queries: int = 1
    """Query examples a class in training."""
    test_queries: int = 1
    """Query examples a class in validation and test."""
    rotations: bool = True
    """Characters turned by 90, 180 and 270 degrees are classes of their own."""
    test_rotations: bool = True
    """The same in validation and test."""

    loss = staticmethod(losses.cross_entropy)

    @property
    def num_outputs(self) -> int:
        """Logits of the model."""
        return self.ways

    def splits(self) -> TaskSplits:
        """Loads the images and builds the samplers."""
        classes = tasks.load_omniglot(self.data_dir, split=self.split)

        def sampler(dataset, queries, rotations):
            return tasks.few_shot(
                dataset,
                ways=self.ways,
                shots=self.shots,
                queries=queries,
                rotations=rotations,
            )

        return TaskSplits(
            sampler(classes.train, self.queries, self.rotations),
            sampler(classes.validation, self.test_queries, self.test_rotations),
            sampler(classes.test, self.test_queries, self.test_rotations),
        )


Tasks: TypeAlias = SinusoidTasks | GlyphTasks | OmniglotTasks


@dataclasses.dataclass(frozen=True)
class MlpModel:
    """Dense layers with ReLU."""

    hidden: tuple[int, ...] = (40, 40)
    """Widths of the hidden layers."""
    norm: Literal["batch"] | None = None
    """Batch normalisation, or none."""

    def make(self, num_outputs: int, statistics: Statistics) -> base.ModelLike:
        """Builds the model."""
        features = (*self.hidden, num_outputs)
        return models.MLP(features, norm=self.norm, statistics=statistics)


@dataclasses.dataclass(frozen=True)
class Conv4Model:
    """Four blocks of 3x3 convolution, batch normalisation and ReLU."""

    filters: int = 64
    """Of every convolution."""
    strided: bool = True
    """Halve the image by strides (MAML on Omniglot) rather than by pooling."""
    norm: Literal["batch"] | None = "batch"
    """Batch normalisation, or none."""

    def make(self, num_outputs: int, statistics: Statistics) -> base.ModelLike:
        """Builds the model."""
        return models.Conv4(
            self.filters,
            head=num_outputs,
            strided=self.strided,
            norm=self.norm,
            statistics=statistics,
        )


@dataclasses.dataclass(frozen=True)
class MamlLearner:
    """Model-agnostic meta-learning."""

    inner_learning_rate: float = 0.01
    """Of an inner step."""
    inner_optimizer: Literal["sgd", "momentum", "adam"] = "sgd"
    """What makes an inner step."""
    inner_steps: int = 1
    """Inner steps in training."""
    test_inner_steps: int = 10
    """Inner steps in validation and test; all before it are reported too."""
    first_order: bool = False
    """Treat inner gradients as constants: FOMAML."""

    def make(self, model: base.ModelLike, loss: base.LossFn) -> base.MetaLearner:
        """Builds the learner."""
        _checks.check_positive("inner_learning_rate", self.inner_learning_rate)
        inner = {
            "sgd": optax.sgd,
            "momentum": lambda rate: optax.sgd(rate, momentum=0.9),
            "adam": optimizers.adam,
        }[self.inner_optimizer]
        return learners.maml(
            model,
            loss,
            inner_tx=inner(self.inner_learning_rate),
            inner_steps=self.inner_steps,
            first_order=self.first_order,
        )


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A named experiment."""

    summary: tyro.conf.Suppress[str]
    published: tyro.conf.Suppress[str]
    """The number in the literature."""
    protocol: tyro.conf.Suppress[str]
    """How ours is measured, and where that differs from the paper."""
    tasks: Tasks
    model: MlpModel | Conv4Model
    learner: MamlLearner
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
        self, statistics: Statistics = "batch", inner_steps: int | None = None
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


_PARTS = {
    part.__name__: part
    for part in (
        SinusoidTasks,
        GlyphTasks,
        OmniglotTasks,
        MlpModel,
        Conv4Model,
        MamlLearner,
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
    if kind not in _PARTS:
        raise ValueError(f"`kind` must be one of {sorted(_PARTS)}, got {kind!r}.")
    known = {field.name for field in dataclasses.fields(_PARTS[kind])}
    if unknown := set(value) - known:
        raise ValueError(
            f"{kind} has no field {sorted(unknown)}, only {sorted(known)}."
        )
    fields = {name: from_json(item) for name, item in value.items()}
    if fields.get("data_dir"):
        fields["data_dir"] = pathlib.Path(fields["data_dir"])
    return _PARTS[kind](**fields)
