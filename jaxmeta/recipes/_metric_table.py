"""The recipes of metric learners."""

import dataclasses

from jaxmeta.recipes._config import Recipe
from jaxmeta.recipes._learner_settings import (
    FeatLearner,
    MatchingLearner,
    PrototypicalLearner,
    RelationLearner,
    RidgeLearner,
    SiameseLearner,
    SubspaceLearner,
    SvmLearner,
)
from jaxmeta.recipes._task_settings import Conv4Model, OmniglotTasks, RelationModel


def _vinyals(train_ways):
    return OmniglotTasks(
        split="vinyals", ways=20, train_ways=train_ways, queries=5, test_queries=5
    )


def _by_metric(name, learner, published, *, steps=4000, ours="", **options):
    """A metric learner on Omniglot, trained on 20 ways and tested on 20 (and 5)."""
    settings = {
        "tasks": _vinyals(train_ways=20),
        "model": Conv4Model(),
        "num_tasks": 4,
        "outer_learning_rate": 3e-3,
        "cosine": True,
        "steps": steps,
        "validate_every": 500,
    } | options
    tasks = settings["tasks"]
    network = "strided" if getattr(settings["model"], "strided", False) else "pooled"
    return Recipe(
        summary=f"{name} on Omniglot, {tasks.ways}-way {tasks.shots}-shot",
        published=published,
        protocol="Vinyals' split, rotations as classes in training and at test; "
        "{tasks.train_ways} ways and {tasks.queries} queries a class in training, 5 at "
        "test; {test_tasks:,} test tasks; transductive batch norm, each set by itself, "
        f"the inductive number beside it. Ours: {network} network, outer rate "
        "{outer_learning_rate:g} along a cosine, {steps:,} meta-steps, tasks in each: "
        f"{{num_tasks}}{ours}.",
        learner=learner,
        **settings,
    )


def _on_60_ways(name, learner, published, **options):
    """As prototypical networks were published: 60 ways, a pooled network."""
    return _by_metric(
        name,
        learner,
        published,
        tasks=_vinyals(train_ways=60),
        model=Conv4Model(strided=False),
        num_tasks=1,
        outer_learning_rate=2e-3,
        **options,
    )


_prototypical_1s = _on_60_ways(
    "Prototypical networks",
    PrototypicalLearner(),
    "96.0 % on 20 ways, 98.8 % on 5; with 5 shots 98.9 %, 99.7 % (Snell et al. 2017, "
    "Table 1)",
    steps=7500,
)

RECIPES: dict[str, Recipe] = {
    "prototypical-omniglot-1s": _prototypical_1s,
    "prototypical-omniglot-lake": dataclasses.replace(
        _prototypical_1s,
        summary="Prototypical networks on Omniglot's background alphabets, for Lake's "
        "one-shot runs",
        published="13.7 % error on the runs (Lake et al. 2019, Table 1)",
        protocol="trained within alphabets on 25 of the 30 background alphabets, five "
        "for validation; 20 ways, 5 queries; affine maps; the runs by `jaxmeta lake`",
        tasks=OmniglotTasks(
            split="lake",
            ways=20,
            train_ways=20,
            queries=5,
            test_queries=5,
            rotations=False,
            test_rotations=False,
            affine=True,
            within_alphabets=True,
        ),
        model=Conv4Model(),
        num_tasks=4,
        steps=6000,
    ),
    "matching-omniglot-1s": _on_60_ways(
        "Matching networks",
        MatchingLearner(),
        "93.8 % on 20 ways, 98.1 % on 5 (Vinyals et al. 2016, Table 1)",
        steps=3000,
    ),
    "siamese-omniglot-1s": _on_60_ways(
        "Siamese networks",
        SiameseLearner(),
        "88.2 % on 20 ways, 97.3 % on 5 (quoted by Finn et al. 2017, Table 1)",
        ours="; Conv4 instead of Koch's network",
        steps=3000,
    ),
    "relation-omniglot-1s": _by_metric(
        "Relation networks",
        RelationLearner(),
        "97.6 ± 0.2 % on 20 ways, 99.6 ± 0.2 % on 5 (Sung et al. 2018, Table 1)",
        # On 20 ways, 19 of 20 targets are 0, and learning hardly starts.
        tasks=_vinyals(train_ways=5),
        model=RelationModel(),
        steps=8000,
    ),
    "ridge-omniglot-1s": _on_60_ways(
        "R2-D2",
        RidgeLearner(),
        "94.70 % on 20 ways, 98.55 % on 5 (Bertinetto et al. 2019, Table 2)",
        steps=3000,
    ),
    "svm-omniglot-1s": _by_metric("MetaOptNet-SVM", SvmLearner(), "none"),
    "subspace-omniglot-1s": _by_metric(
        "Adaptive subspaces",
        SubspaceLearner(),
        "none",
        model=Conv4Model(strided=False),
        num_tasks=3,
        outer_learning_rate=2e-3,
        steps=2500,
    ),
    "feat-omniglot-1s": _by_metric("FEAT", FeatLearner(temperature=1.0), "none"),
}
