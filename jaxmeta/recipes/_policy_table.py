"""The recipes of policies."""

from jaxmeta.recipes._config import Recipe
from jaxmeta.recipes._learner_settings import PolicyMamlLearner
from jaxmeta.recipes._task_settings import LocomotionTasks, MlpModel, NavigationTasks


def _locomotion(summary, published, tasks):
    return Recipe(
        summary=summary,
        published=published,
        protocol="{learner.num_episodes} episodes of {tasks.horizon} time steps before "
        "and after one inner step at rate {learner.inner_learning_rate:g}, {num_tasks} "
        "tasks a meta-step; tested with {learner.test_episodes} episodes an update, "
        "later updates at {learner.later_learning_rate:g}. Ours: brax instead of "
        "MuJoCo, {learner.num_epochs} epochs of PPO with low-variance curvature "
        "(ProMP) instead of TRPO, standard deviations that start at {learner.std:g} "
        "and rates of twice the paper's",
        tasks=tasks,
        model=MlpModel(hidden=(100, 100)),
        learner=PolicyMamlLearner(
            inner_learning_rate=0.2,
            later_learning_rate=0.1,
            test_inner_steps=3,
            std=0.5,
            num_epochs=25,
        ),
        num_tasks=40,
        steps=500,
        log_every=1,
        validate_every=25,
        validation_tasks=40,
        test_tasks=40,
    )


RECIPES = {
    "maml-navigation": Recipe(
        summary="MAML of a policy that walks to unseen goals in the plane",
        published="average return -40.41 / -11.68 / -3.33 / -3.23 after 0 / 1 / 2 / 3 "
        "updates (Finn et al. 2017, Table 4)",
        protocol="the released code's environment: goals uniform in [-0.5, 0.5]^2, "
        "reward minus the distance, {tasks.horizon} time steps; {learner.num_episodes} "
        "episodes before each inner step and after the last, at rate "
        "{learner.inner_learning_rate:g}, then {learner.later_learning_rate:g}; "
        "{num_tasks} tasks a meta-step; tested with {learner.test_episodes} episodes "
        "an update. Ours: {learner.inner_steps} inner steps in training instead of 1; "
        "64-64 units, PPO with low-variance curvature (ProMP), at "
        "{outer_learning_rate:g} along a cosine, instead of TRPO; {test_tasks} test "
        "goals",
        tasks=NavigationTasks(),
        model=MlpModel(hidden=(64, 64)),
        learner=PolicyMamlLearner(inner_steps=2),
        num_tasks=20,
        outer_learning_rate=1e-3,
        cosine=True,
        steps=400,
        log_every=5,
        validate_every=50,
        validation_tasks=40,
        test_tasks=400,
    ),
    "maml-half-cheetah-direction": _locomotion(
        "MAML of a half-cheetah that runs forwards or backwards; needs brax",
        "return -50.69 / 293.19 / 313.48 / 315.65 after 0 / 1 / 2 / 3 updates, in "
        "MuJoCo (Finn et al. 2017, Table 5)",
        LocomotionTasks("half-cheetah-direction"),
    ),
    "maml-half-cheetah-velocity": _locomotion(
        "MAML of a half-cheetah that runs at a velocity; needs brax",
        "curves alone (Finn et al. 2017, Figure 5)",
        LocomotionTasks("half-cheetah-velocity"),
    ),
    "maml-ant-velocity": _locomotion(
        "MAML of an ant that runs at a velocity; needs brax",
        "curves alone (Finn et al. 2017, Figure 5)",
        LocomotionTasks("ant-velocity"),
    ),
}
