"""Settings of the parts of a recipe: dataclasses, each of which builds its part."""

import dataclasses
import math
import pathlib
from typing import Literal, NamedTuple, TypeAlias

from jaxmeta import base, losses, models, tasks

Statistics = Literal["batch", "support"]


class TaskSplits(NamedTuple):
    """Task samplers for meta-training, validation and test."""

    train: base.SampleTask
    validation: base.SampleTask
    test: base.SampleTask


@dataclasses.dataclass(frozen=True)
class SinusoidTasks:
    """Sinusoids of random amplitude, frequency and phase."""

    shots: int = 10
    """Support points a task."""
    queries: int = 10
    """Query points a task in training."""
    test_shots: int = 5
    """Support points a task in validation and test."""
    test_queries: int = 100
    """Query points a task in validation and test."""
    frequency: tuple[float, float] = (1.0, 1.0)
    """Range of the frequency, in radians per unit of x."""
    phase: tuple[float, float] = (0.0, math.pi)
    """Range of the phase that is taken off, in radians."""

    loss = staticmethod(losses.squared_error)
    num_outputs = 1

    def splits(self) -> TaskSplits:
        """Builds the samplers; train and test tasks differ in their keys."""

        def sampler(shots, queries):
            return tasks.sinusoid(
                shots=shots,
                queries=queries,
                frequency=self.frequency,
                phase=self.phase,
            )

        test = sampler(self.test_shots, self.test_queries)
        return TaskSplits(sampler(self.shots, self.queries), test, test)


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
    train_ways: int | None = None
    """Classes a task in training; as in the test when left out."""
    train_shots: int | None = None
    """Support examples a class in training; as in the test when left out."""
    within_alphabets: bool = False
    """All characters of a task are of one alphabet, in training, validation and test.
    """
    affine: bool = False
    """Warp every image of the training tasks by a random affine map."""
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

        def sampler(dataset, ways, shots, queries, rotations):
            return tasks.few_shot(
                dataset,
                ways=ways,
                shots=shots,
                queries=queries,
                rotations=rotations,
                within_groups=self.within_alphabets,
            )

        train = sampler(
            classes.train,
            self.train_ways or self.ways,
            self.train_shots or self.shots,
            self.queries,
            self.rotations,
        )
        if self.affine:
            train = tasks.random_affine(train)
        test = (self.ways, self.shots, self.test_queries, self.test_rotations)
        return TaskSplits(
            train, sampler(classes.validation, *test), sampler(classes.test, *test)
        )


Tasks: TypeAlias = SinusoidTasks | GlyphTasks | OmniglotTasks


@dataclasses.dataclass(frozen=True)
class MlpModel:
    """Dense layers with ReLU."""

    hidden: tuple[int, ...] = (40, 40)
    """Widths of the hidden layers."""
    norm: Literal["batch"] | None = None
    """Batch normalisation, or none."""

    def make(self, num_outputs: int | None, statistics: Statistics) -> base.ModelLike:
        """Builds the model; None makes it embed."""
        features = (*self.hidden, *(() if num_outputs is None else (num_outputs,)))
        return models.MLP(features, norm=self.norm, statistics=statistics)


@dataclasses.dataclass(frozen=True)
class Conv4Model:
    """Four blocks of 3x3 convolution, batch normalisation and ReLU."""

    filters: int = 64
    """Filters per convolution."""
    strided: bool = True
    """Halve the image by strides (MAML on Omniglot) rather than by pooling."""
    norm: Literal["batch"] | None = "batch"
    """Batch normalisation, or none."""

    def make(self, num_outputs: int | None, statistics: Statistics) -> base.ModelLike:
        """Builds the model; None makes it embed."""
        return models.Conv4(
            self.filters,
            head=num_outputs,
            strided=self.strided,
            norm=self.norm,
            statistics=statistics,
        )


@dataclasses.dataclass(frozen=True)
class FilmConv4Model:
    """Conv4 with a layer that CAVIA's context scales and shifts."""

    filters: int = 64
    """Filters per convolution."""
    strided: bool = True
    """Halve the image by strides rather than by pooling."""
    norm: Literal["batch"] | None = "batch"
    """Batch normalisation, or none."""

    def make(self, num_outputs: int | None, statistics: Statistics) -> base.ModelLike:
        """Builds the model."""
        return models.FilmConv4(
            self.filters,
            head=num_outputs or 0,
            strided=self.strided,
            norm=self.norm,
            statistics=statistics,
        )


@dataclasses.dataclass(frozen=True)
class RelationModel:
    """The embedding of relation networks, which keeps maps."""

    filters: int = 64
    """Filters per convolution."""
    norm: Literal["batch"] | None = "batch"
    """Batch normalisation, or none."""

    def make(self, num_outputs: int | None, statistics: Statistics) -> base.ModelLike:
        """Builds the model."""
        del num_outputs
        return models.RelationEmbedding(
            self.filters, norm=self.norm, statistics=statistics
        )


ModelSettings: TypeAlias = MlpModel | Conv4Model | FilmConv4Model | RelationModel
