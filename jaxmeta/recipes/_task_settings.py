"""Settings of tasks and of models."""

import pathlib
from typing import Any, Literal, NamedTuple, TypeAlias

from jaxmeta import base, losses, models, rl, tasks
from jaxmeta.recipes._settings import Settings, settings

Statistics = Literal["batch", "support"]


class TaskSplits(NamedTuple):
    """Task samplers for meta-training, validation and test."""

    train: base.SampleTask
    validation: base.SampleTask
    test: base.SampleTask


@settings(tasks.sinusoid, "frequency", "phase")
class SinusoidTasks(Settings):
    """Sinusoids of random amplitude, frequency and phase."""

    shots: int = 10
    """Support points per task in training."""
    queries: int = 10
    """Query points per task in training."""
    test_shots: int = 5
    """Support points per task in validation and test."""
    test_queries: int = 100
    """Query points per task in validation and test."""

    loss = staticmethod(losses.squared_error)
    num_outputs = 1

    def splits(self) -> TaskSplits:
        """Builds the samplers; train and test tasks differ in their keys."""
        test = self.build(shots=self.test_shots, queries=self.test_queries)
        return TaskSplits(
            self.build(shots=self.shots, queries=self.queries), test, test
        )


class _Classes(Settings):
    """Classification tasks: as many outputs as classes."""

    loss = staticmethod(losses.cross_entropy)

    @property
    def num_outputs(self) -> int:
        """Logits of the model."""
        return self.ways


@settings(tasks.glyphs, "ways", "shots", "size")
class GlyphTasks(_Classes):
    """Invented characters, drawn on the device; no download."""

    queries: int = 5
    """Query examples per class in training."""
    test_queries: int = 15
    """Query examples per class in validation and test."""

    def splits(self) -> TaskSplits:
        """Builds the samplers; train and test tasks differ in their keys."""
        test = self.build(queries=self.test_queries)
        return TaskSplits(self.build(queries=self.queries), test, test)


@settings()
class OmniglotTasks(_Classes):
    """Handwritten characters of 50 alphabets, through tensorflow-datasets."""

    data_dir: pathlib.Path | None = None
    """Data directory of tensorflow-datasets; None is its own default."""
    split: Literal["random", "vinyals", "lake"] = "random"
    """Training characters: 1,200 random ones, Vinyals' list, or Lake's background."""
    ways: int = 5
    """Classes per task."""
    shots: int = 1
    """Support examples per class."""
    queries: int = 1
    """Query examples per class in training."""
    test_queries: int = 1
    """Query examples per class in validation and test."""
    train_ways: int | None = None
    """Classes per task in training; None is the number at test."""
    train_shots: int | None = None
    """Support examples per class in training; None is the number at test."""
    within_alphabets: bool = False
    """Draw all characters of a task from one alphabet, in every split."""
    affine: bool = False
    """Warp every image of the training tasks by a random affine map."""
    rotations: bool = True
    """Count characters rotated by 90, 180 and 270 degrees as separate classes."""
    test_rotations: bool = True
    """Likewise in validation and test."""

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


class _Environments(Settings):
    """Tasks of one environment, which learners take instead of a loss."""

    @property
    def environment(self) -> rl.Environment:
        """The environment that these settings describe."""
        raise NotImplementedError

    @property
    def num_outputs(self) -> int:
        """Size of an action: the model outputs action means."""
        return self.environment.actions.size

    def splits(self) -> TaskSplits:
        """Builds the samplers; train and test tasks differ in their keys."""
        sample_task: Any = self.environment.sample_task
        return TaskSplits(sample_task, sample_task, sample_task)


@settings()
class NavigationTasks(_Environments):
    """Goals in the plane for a point that does not see them."""

    variant: Literal["released", "paper"] = "released"
    """Rewards of MAML's released code, or of its paper."""
    horizon: int = 100
    """Time steps per episode."""

    @property
    def environment(self) -> rl.Environment:
        """The plane."""
        return rl.navigation(self.variant, horizon=self.horizon)


@settings()
class LocomotionTasks(_Environments):
    """Directions or velocities for a body of brax (the extra `rl`)."""

    body: Literal["half-cheetah-direction", "half-cheetah-velocity", "ant-velocity"] = (
        "half-cheetah-direction"
    )
    """Body, and what varies between tasks."""
    horizon: int = 200
    """Time steps per episode."""
    backend: Literal["generalized", "positional", "spring"] = "generalized"
    """Brax's physics, from most exact to fastest."""

    @property
    def environment(self) -> rl.Environment:
        """The body in its world."""
        make = {
            "half-cheetah-direction": rl.half_cheetah_direction,
            "half-cheetah-velocity": rl.half_cheetah_velocity,
            "ant-velocity": rl.ant_velocity,
        }[self.body]
        return make(horizon=self.horizon, backend=self.backend)


PolicyTasks: TypeAlias = NavigationTasks | LocomotionTasks


@settings()
class _Network(Settings):
    norm: Literal["batch"] | None = "batch"
    """Batch normalisation, or none."""

    def make(self, num_outputs: int | None, statistics: Statistics) -> base.ModelLike:
        """Builds the model; None makes it embed."""
        return self.build(head=num_outputs, norm=self.norm, statistics=statistics)


@settings(models.MLP, norm=None)
class MlpModel(_Network):
    """Dense layers with ReLU."""

    hidden: tuple[int, ...] = (40, 40)
    """Widths of the hidden layers."""

    def make(self, num_outputs: int | None, statistics: Statistics) -> base.ModelLike:
        """Builds the model; None makes it embed."""
        features = (*self.hidden, *(() if num_outputs is None else (num_outputs,)))
        return models.MLP(features, norm=self.norm, statistics=statistics)


@settings(models.Conv4, "filters", strided=True)
class Conv4Model(_Network):
    """Four blocks of 3x3 convolution, batch normalisation and ReLU."""


@settings(models.FilmConv4, filters=64, strided=True)
class FilmConv4Model(_Network):
    """Conv4 with a layer that CAVIA's context scales and shifts."""


@settings(models.RelationEmbedding, "filters")
class RelationModel(_Network):
    """The embedding of relation networks: feature maps."""

    def make(self, num_outputs: int | None, statistics: Statistics) -> base.ModelLike:
        """Builds the model."""
        del num_outputs
        return self.build(norm=self.norm, statistics=statistics)


ModelSettings: TypeAlias = MlpModel | Conv4Model | FilmConv4Model | RelationModel
