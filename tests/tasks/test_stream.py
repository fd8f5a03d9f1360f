"""Tasks that come from the host."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmeta as jm
from jaxmeta import estimators, training

pytest.importorskip("grain")

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (60, 4, 4, 1), np.uint8)
LABELS = RNG.permutation(np.arange(60) % 9) * 7  # 9 classes of 6 or 7, any numbers
SIZES = {"ways": 3, "shots": 1, "queries": 2, "num_tasks": 4}


def _stream(**options):
    return jm.tasks.stream_few_shot(IMAGES, LABELS, **SIZES | options)


def _some(stream, step, count):
    batches = stream.read(step)
    return [next(batches) for _ in range(count)]


def _train_step(stream):
    net = jm.models.Conv4(2, head=3, strided=True, norm=None)
    learner = jm.maml(
        net, jm.losses.cross_entropy, inner_tx=optax.sgd(0.1), inner_steps=1
    )
    estimator = estimators.over_stream(learner, stream)
    return learner, training.make_train_step(estimator, optax.adam(1e-2))


def test_episodes_are_of_distinct_examples_of_their_classes():
    where = {image.tobytes(): i for i, image in enumerate(IMAGES)}
    classes = set()
    for batch in _some(_stream(), 0, 10):
        chex.assert_shape(batch.support.inputs, (4, 3, 4, 4, 1))
        chex.assert_shape(batch.query.targets, (4, 6, 3))
        for t in range(4):
            support, query = (
                [where[np.uint8(np.rint(x * 255)).tobytes()] for x in part.inputs[t]]
                for part in batch
            )
            assert len({*support, *query}) == 9
            of_task = LABELS[support]
            assert len(set(of_task)) == 3
            np.testing.assert_array_equal(LABELS[query], np.repeat(of_task, 2))
            classes |= set(of_task)
        labels = [np.argmax(part.targets[0], -1).tolist() for part in batch]
        assert labels == [[0, 1, 2], [0, 0, 1, 1, 2, 2]]
    assert classes == set(LABELS)


def test_a_step_has_the_same_batch_from_wherever_one_starts():
    late, early = _some(_stream(), 5, 2), _some(_stream(), 0, 7)
    chex.assert_trees_all_equal(late, early[5:])
    assert (early[0].support.inputs != early[1].support.inputs).any()
    other = _some(_stream(seed=1), 0, 1)[0]
    assert (early[0].support.inputs != other.support.inputs).any()


@pytest.mark.parametrize("num_processes", [2, 4])
def test_processes_share_what_one_would_have(num_processes, monkeypatch):
    alone = _some(_stream(), 3, 2)
    monkeypatch.setattr(jax, "process_count", lambda: num_processes)
    shares = []
    for i in range(num_processes):
        monkeypatch.setattr(jax, "process_index", lambda i=i: i)
        shares.append(_some(_stream(), 3, 2))
    join = lambda *leaves: np.concatenate(leaves)
    together = [jax.tree.map(join, *batches) for batches in zip(*shares, strict=True)]
    chex.assert_trees_all_equal(together, alone)


@pytest.mark.parametrize("num_devices", [pytest.param(None, marks=pytest.mark.slow), 2])
def test_training_is_on_these_tasks_and_resumes(num_devices, tmp_path, key):
    mesh = num_devices and training.task_mesh(jax.devices()[:num_devices])
    stream = _stream(mesh=mesh)
    learner, train_step = _train_step(stream)
    state = train_step.init(key)
    for batch in _some(stream, 0, 6):
        grads = [
            jax.jit(learner.meta_grad)(key, state.meta_params, jm.Task(*one))[0]
            for one in [jax.tree.map(lambda x, t=t: x[t], batch) for t in range(4)]
        ]
        mean = jax.tree.map(lambda *g: jnp.mean(jnp.stack(g), 0), *grads)
        updates, opt_state = optax.adam(1e-2).update(mean, state.opt_state)
        meta_params = optax.apply_updates(state.meta_params, updates)
        state = state._replace(meta_params=meta_params, opt_state=opt_state)
    options = {"key": key, "log_every": 2, "stream": stream}
    whole = training.fit(train_step, num_steps=6, **options)
    chex.assert_trees_all_close(
        whole.state.meta_params, state.meta_params, rtol=1e-3, atol=1e-5
    )
    options |= {"directory": tmp_path / "run", "validate_every": 2}
    training.fit(train_step, num_steps=2, **options)
    resumed = training.fit(train_step, num_steps=6, **options)
    chex.assert_trees_all_equal(resumed.state.meta_params, whole.state.meta_params)
    records = training.read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [r["step"] for r in records] == [1, 2, 4, 6]
    assert {"loss", "accuracy"} <= set(records[0])


@pytest.mark.parametrize("balanced", [True, False])
def test_ways_and_shots_vary(balanced):
    """And only the examples of the task are read."""
    read = []

    class Source(list):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    stream = jm.tasks.stream_few_shot(
        Source(np.arange(1, 61)),
        LABELS,
        **SIZES | {"ways": (2, 5), "shots": (1, 4), "num_tasks": 200},
        balanced=balanced,
    )
    read.clear()
    batch = next(stream.read(0))
    chex.assert_shape(batch.support.inputs, (200, 20))
    chex.assert_shape(batch.query.targets, (200, 10, 5))
    for inputs, targets in batch:
        assert ((inputs > 0) == targets.any(-1)).all()
    num_shots = batch.support.targets.sum(1)
    num_ways = (num_shots > 0).sum(1)
    has_class = np.arange(5)[None] < num_ways[:, None]
    np.testing.assert_array_equal(batch.query.targets.sum(1), 2 * has_class)
    assert set(num_ways) == {2, 3, 4, 5}
    assert set(num_shots[:, 0]) == {1, 2, 3, 4}
    assert (num_shots[:, 0] == num_shots[:, 1]).all() == balanced


def test_paths_are_opened_by_the_transform(tmp_path):
    for i, image in enumerate(IMAGES[:30]):
        np.save(tmp_path / f"{i}.npy", image)
    paths = [tmp_path / f"{i}.npy" for i in range(30)]
    stream = jm.tasks.stream_few_shot(
        paths, np.arange(30) % 5, transform=lambda p: np.load(p) / 2.0, **SIZES
    )
    assert 1 < _some(stream, 0, 1)[0].support.inputs.max() <= 127.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ways": 0}, "`ways` must be an int >= 1, got 0"),
        ({"ways": 10}, "`ways` must be at most 9, the classes with .* 3 examples"),
        (
            {"queries": 7},
            "`ways` must be at most 0, the classes with .* 8 examples",
        ),
        ({"labels": LABELS[:-1]}, r"`labels` must have shape \(60,\).*got \(59,\)"),
    ],
)
def test_what_cannot_be_streamed_is_named(options, message):
    options = {"labels": LABELS} | SIZES | options
    with pytest.raises(ValueError, match=message):
        jm.tasks.stream_few_shot(IMAGES, options.pop("labels"), **options)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ([f"{i}.png" for i in range(60)], {}, "`source` or `transform` must return"),
        ([np.zeros(4 + (i > 0)) for i in range(60)], {}, r"has shape \(5,\) and dtype"),
        (IMAGES, {"seed": -1}, "`seed` must be an int >= 0, got -1"),
    ],
)
def test_sources_that_do_not_suit_are_named(source, options, message):
    with pytest.raises(ValueError, match=message):
        jm.tasks.stream_few_shot(source, LABELS, **SIZES | options)


def test_tasks_do_not_divide_into_processes(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    with pytest.raises(ValueError, match="`num_tasks` must be a multiple of the 3"):
        _stream()


def test_a_wrong_batch_and_a_stream_that_ends_are_named(key):
    stream = _stream()
    _, train_step = _train_step(stream)
    (batch,) = _some(stream, 0, 1)
    fewer = jax.tree.map(lambda x: x[:3], batch)
    with pytest.raises(ValueError, match="`tasks` must be a batch like the"):
        train_step.step(train_step.init(key), tasks=fewer)
    short = stream._replace(read=lambda step: iter([batch] * 3))
    with pytest.raises(ValueError, match="`over_stream` requires `tasks`"):
        train_step.step(train_step.init(key))
    own = jm.estimators.over_tasks(
        jm.prototypical(jm.models.Conv4(2, head=None, strided=True)),
        jm.tasks.glyphs(ways=3, shots=1, queries=2),
        num_tasks=4,
    )
    with pytest.raises(ValueError, match="`over_tasks` samples its own tasks"):
        own.estimate(key, *own.init(key), tasks=next(stream.read(0)))
    with pytest.raises(ValueError, match=r"`stream\.read` ended before"):
        training.fit(train_step, num_steps=4, key=key, stream=short)
