"""Settings of recipes' policies: their environments, and how they are meta-trained."""

import dataclasses
from typing import Any, Literal, TypeAlias

import jax.numpy as jnp
import optax

from jaxmeta import _checks, base, rl
from jaxmeta.recipes import _learner_settings, _settings


class _Environments:
    """Tasks of one environment, which learners are given in the place of a loss."""

    @property
    def environment(self) -> rl.Environment:
        """That of these settings."""
        raise NotImplementedError

    @property
    def num_outputs(self) -> int:
        """Actions, whose means are the outputs of the model."""
        return self.environment.actions.size

    def splits(self) -> _settings.TaskSplits:
        """Builds the samplers; train and test tasks differ in their keys."""
        sample_task: Any = self.environment.sample_task
        return _settings.TaskSplits(sample_task, sample_task, sample_task)


@dataclasses.dataclass(frozen=True)
class NavigationTasks(_Environments):
    """Goals in the plane for a point that does not see them."""

    variant: Literal["released", "paper"] = "released"
    """The rewards of MAML's released code, or of its paper."""
    horizon: int = 100
    """Time steps of an episode."""

    @property
    def environment(self) -> rl.Environment:
        """The plane."""
        return rl.navigation(self.variant, horizon=self.horizon)


@dataclasses.dataclass(frozen=True)
class LocomotionTasks(_Environments):
    """Directions or velocities for a body of brax (the extra `rl`)."""

    body: Literal["half-cheetah-direction", "half-cheetah-velocity", "ant-velocity"] = (
        "half-cheetah-direction"
    )
    """What is to run, and what the task is."""
    horizon: int = 200
    """Time steps of an episode."""
    backend: Literal["generalized", "positional", "spring"] = "generalized"
    """Brax's physics: the most exact first, the fastest last."""

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


@dataclasses.dataclass(frozen=True)
class PolicyMamlLearner(_learner_settings.Learner):
    """MAML of a policy."""

    inner_learning_rate: float = 0.5
    """Of the first inner step."""
    later_learning_rate: float = 0.25
    """Of the inner steps after it."""
    inner_steps: int = 1  # pyright: ignore
    """Inner steps in training."""
    test_inner_steps: int = 4  # pyright: ignore
    """Inner steps in validation and test; all before it are reported too."""
    num_episodes: int = 20
    """Episodes before each inner step and after the last."""
    test_episodes: int = 40
    """The same in validation and test."""
    surrogate: Literal["loaded-dice", "dice", "low-variance", "log-likelihood"] = (
        "low-variance"
    )
    """Inner surrogate objective."""
    sampling_term: float = 0.0
    """Weight of the meta-gradient of where inner episodes go: E-MAML."""
    first_order: bool = False
    """Treat inner gradients as constants."""
    discount: float = 0.99
    """Of later rewards."""
    gae_lambda: float = 1.0
    """Of generalised advantages."""
    std: float = 1.0
    """Standard deviation of the actions at first."""
    outer: Literal["ppo", "trpo", "gradient"] = "ppo"
    """The outer update: clipped epochs by the outer optimizer, a trust region, or one
    step by the outer optimizer."""
    num_epochs: int = 5
    """Of PPO, on the same episodes."""
    clip_ratio: float = 0.3
    """Of PPO."""
    kl_penalty: float = 5e-4
    """Of PPO: weight of the divergence before adaptation."""
    max_kl: float = 0.01
    """Of TRPO."""

    def make(self, model: base.ModelLike, loss: Any) -> Any:
        """Builds the learner; an environment takes the place of the loss."""
        for name in ("inner_learning_rate", "later_learning_rate"):
            _checks.check_positive(name, getattr(self, name))
        first, later = self.inner_learning_rate, self.later_learning_rate
        return rl.maml(
            loss,
            rl.gaussian_policy(model, std=self.std),
            inner_tx=optax.sgd(lambda count: jnp.where(count == 0, first, later)),
            inner_steps=self.inner_steps,
            num_episodes=self.num_episodes,
            test_episodes=self.test_episodes,
            surrogate=self.surrogate,
            sampling_term=self.sampling_term,
            first_order=self.first_order,
            discount=self.discount,
            gae_lambda=self.gae_lambda,
        )

    @property
    def updates_per_step(self) -> int:  # pyright: ignore
        """By the outer optimizer: what its schedule counts."""
        return self.num_epochs if self.outer == "ppo" else 1

    def estimator(self, learner: Any, sample_task, outer_tx, **over) -> Any:
        """Builds the estimator that the outer update wants."""
        if self.outer == "trpo":
            return rl.trpo(learner, sample_task, max_kl=self.max_kl, **over)
        if self.outer == "ppo":
            return rl.ppo(
                learner,
                sample_task,
                outer_tx=outer_tx,
                num_epochs=self.num_epochs,
                clip=self.clip_ratio,
                kl_penalty=self.kl_penalty,
                **over,
            )
        return super().estimator(learner, sample_task, outer_tx, **over)

    def outer_tx(self, outer_tx):
        """PPO and TRPO have made the update already."""
        return outer_tx if self.outer == "gradient" else optax.sgd(1.0)


def check_match(tasks: Any, learner: base.PyTree) -> None:
    """Raises unless environments meet policies, and nothing else does."""
    if isinstance(tasks, PolicyTasks) != isinstance(learner, PolicyMamlLearner):
        raise ValueError(
            f"`learner` must suit the tasks, got {type(learner).__name__} for "
            f"{type(tasks).__name__}: policies are for environments."
        )
