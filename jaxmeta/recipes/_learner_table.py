"""The recipes of learners with an inner loop, but MAML."""

import math

from jaxmeta.recipes._config import Recipe
from jaxmeta.recipes._learner_settings import (
    AnilLearner,
    BoilLearner,
    CaviaLearner,
    ImamlLearner,
    MamlPlusPlusLearner,
    MetaCurvatureLearner,
    MetaLstmLearner,
    MetaSgdLearner,
    ProtoMamlLearner,
    ReptileLearner,
)
from jaxmeta.recipes._maml_table import OMNIGLOT_PROTOCOL
from jaxmeta.recipes._task_settings import (
    Conv4Model,
    FilmConv4Model,
    MlpModel,
    OmniglotTasks,
    SinusoidTasks,
)

_OURS = (
    OMNIGLOT_PROTOCOL
    + "Ours: strided network, outer rate {outer_learning_rate:g} along a cosine, "
    "{steps:,} meta-steps, each on {num_tasks} tasks"
)

_meta_sgd_sinusoid = Recipe(
    summary="Meta-SGD on sinusoids of random frequency",
    published="squared error after one step 0.90 ± 0.16 / 0.63 ± 0.12 / 0.50 ± 0.10 "
    "with 5 / 10 / 20 test shots, trained with 5 (Li et al. 2017, Table 1)",
    protocol="one inner step, rates from {learner.low:g} to {learner.high:g} at "
    "first, {num_tasks} tasks a "
    "meta-step, {steps:,} meta-steps, Adam at {outer_learning_rate:g}; {test_tasks:,} "
    "test tasks of {tasks.test_queries} query points. The first number of queries in "
    "training is that of shots",
    # The phase is added.
    tasks=SinusoidTasks(
        shots=5, queries=5, frequency=(0.8, 1.2), phase=(-math.pi, 0.0)
    ),
    model=MlpModel(),
    learner=MetaSgdLearner(),
    num_tasks=4,
    steps=60_000,
    log_every=500,
    validate_every=5000,
    validation_tasks=2000,
    test_tasks=2000,
)

_cavia_sinusoid = Recipe(
    summary="CAVIA on sinusoids, five context parameters",
    published="squared error 0.19 ± 0.02 after one step with 10 shots (Zintgraf et al. "
    "2019, Table 1)",
    protocol="as in the paper: {tasks.shots} shots, one inner step at rate 1, "
    "{num_tasks} tasks a meta-step, {steps:,} meta-steps, Adam at "
    "{outer_learning_rate:g}; {test_tasks:,} test tasks of {tasks.test_queries} query "
    "points",
    tasks=SinusoidTasks(test_shots=10),
    model=MlpModel(),
    learner=CaviaLearner(inner_learning_rate=1.0, test_inner_steps=1),
    num_tasks=25,
    steps=50_000,
    log_every=500,
    validate_every=5000,
    validation_tasks=2000,
    test_tasks=2000,
)


def _by_inner_loop(name, learner, published, *, steps=5000, ours="", **options):
    """A learner with an inner loop on Omniglot, 5-way 1-shot."""
    settings = {
        "tasks": OmniglotTasks(),
        "model": Conv4Model(),
        "num_tasks": 16,
        "outer_learning_rate": 3e-3,
        "cosine": True,
        "steps": steps,
        "validate_every": 500,
    } | options
    return Recipe(
        summary=f"{name} on Omniglot, {settings['tasks'].ways}-way 1-shot, Conv4",
        published=published,
        protocol=_OURS + ours + ".",
        learner=learner,
        **settings,
    )


_20_WAYS = {
    "tasks": OmniglotTasks(ways=20),
    "num_tasks": 8,
    "validation_tasks": 100,
}


_MAML_PLUS_PLUS = MamlPlusPlusLearner(
    learning_rate=0.4, inner_steps=3, test_inner_steps=3, multi_step_until=1000
)


RECIPES: dict[str, Recipe] = {
    "meta-sgd-sinusoid": _meta_sgd_sinusoid,
    "cavia-sinusoid": _cavia_sinusoid,
    "reptile-omniglot-5w1s": _by_inner_loop(
        "Reptile",
        ReptileLearner(inner_learning_rate=3e-3),
        "97.68 ± 0.04 % with transduction, 95.39 ± 0.09 % without (Nichol et al. 2018, "
        "Table 2, 100,000 meta-steps)",
        tasks=OmniglotTasks(train_shots=10),
        num_tasks=5,
        outer_optimizer="sgd",
        outer_learning_rate=1.0,
        steps=36_000,
        ours="; {tasks.train_shots} shots in training; inner rate "
        "{learner.inner_learning_rate:g} instead of 0.001; the paper's "
        "outer rate goes to zero along a line",
    ),
    "reptile-omniglot-20w1s": _by_inner_loop(
        "Reptile",
        ReptileLearner(inner_learning_rate=2e-3, batch_size=20, inner_steps=10),
        "89.43 ± 0.14 % with transduction, 88.14 ± 0.15 % without (Nichol et al. 2018, "
        "Table 2, 200,000 meta-steps)",
        tasks=OmniglotTasks(ways=20, train_shots=10),
        num_tasks=5,
        validation_tasks=100,
        outer_optimizer="sgd",
        outer_learning_rate=1.0,
        steps=12_000,
        ours="; {tasks.train_shots} shots in training, all 20 images a step at test; "
        "inner rate {learner.inner_learning_rate:g} instead of 0.0005; the paper's "
        "outer rate goes to zero along a line",
    ),
    "meta-sgd-omniglot-5w1s": _by_inner_loop(
        "Meta-SGD",
        MetaSgdLearner(low=0.1, high=0.4),
        "99.53 ± 0.26 % (Li et al. 2017)",
        steps=12_000,
        ours="; rates from {learner.low:g} to {learner.high:g} at first",
    ),
    "anil-omniglot-5w1s": _by_inner_loop(
        "ANIL",
        AnilLearner(inner_learning_rate=0.4, inner_steps=3, test_inner_steps=3),
        "none",
    ),
    "anil-omniglot-20w1s": _by_inner_loop(
        "ANIL",
        AnilLearner(inner_learning_rate=0.4, inner_steps=5, test_inner_steps=5),
        "96.2 ± 0.5 % (Raghu et al. 2020, Table 5)",
        **_20_WAYS,
        steps=12_000,
    ),
    "boil-omniglot-5w1s": _by_inner_loop(
        "BOIL",
        BoilLearner(inner_learning_rate=0.4, inner_steps=1, test_inner_steps=3),
        "none",
    ),
    "maml-plus-plus-omniglot-5w1s": _by_inner_loop(
        "MAML++",
        _MAML_PLUS_PLUS,
        "99.47 % (Antoniou et al. 2019, Table 1)",
        steps=5000,
        ours="; {learner.inner_steps} inner steps instead of 5, rates from "
        "{learner.learning_rate:g}",
    ),
    "maml-plus-plus-omniglot-20w1s": _by_inner_loop(
        "MAML++",
        _MAML_PLUS_PLUS,
        "97.65 ± 0.05 % (Antoniou et al. 2019, Table 1, an ensemble of five)",
        **_20_WAYS,
        steps=7000,
        ours="; {learner.inner_steps} inner steps instead of 5, rates from "
        "{learner.learning_rate:g}, one model",
    ),
    "cavia-omniglot-5w1s": _by_inner_loop(
        "CAVIA",
        CaviaLearner(
            inner_learning_rate=1.0,
            inner_steps=2,
            test_inner_steps=2,
            num_context=100,
            context="model",
        ),
        "none",
        model=FilmConv4Model(),
        steps=15_000,
    ),
    "imaml-omniglot-5w1s": _by_inner_loop(
        "Implicit MAML",
        ImamlLearner(
            inner_learning_rate=0.4,
            inner_steps=10,
            test_inner_steps=10,
            regularization=0.1,
            damping=1.0,
        ),
        "99.16 ± 0.35 % (Rajeswaran et al. 2019, Table 2)",
        ours="; {learner.inner_steps} inner steps instead of 16, regularization "
        "{learner.regularization:g} instead of 2, "
        "damping 1",
    ),
    "meta-curvature-omniglot-5w1s": _by_inner_loop(
        "Meta-Curvature",
        MetaCurvatureLearner(inner_learning_rate=0.4),
        "99.97 % (Park and Oliva 2019, Table 1)",
    ),
    "meta-lstm-omniglot-5w1s": _by_inner_loop(
        "Meta-LSTM",
        MetaLstmLearner(),
        "none",
        model=Conv4Model(filters=32),
        num_tasks=4,
        steps=2500,
        clip=0.25,
        outer_learning_rate=1e-3,
        ours="; 32 filters, as in the paper; meta-gradients clipped to a norm of "
        "{clip:g}",
    ),
    "proto-maml-omniglot-5w1s": _by_inner_loop(
        "Proto-MAML",
        ProtoMamlLearner(inner_learning_rate=0.1, test_inner_steps=3),
        "none",
    ),
}
