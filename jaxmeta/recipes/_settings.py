"""Settings of the parts of a recipe: dataclasses, each of which builds its part."""

import dataclasses
import pathlib
from typing import Literal, NamedTuple, TypeAlias

import optax

from jaxmeta import _checks, base, learners, losses, models, optimizers, tasks

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
