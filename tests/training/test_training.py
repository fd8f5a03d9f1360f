"""Steps, evaluation, the host's loop and what it saves."""

import json
import resource
import shutil
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmeta as jm
from tests._learners import maml, regression_task


def _train_step(learner=None, num_tasks=4, outer_tx=None, mesh=None):
    estimator = jm.estimators.over_tasks(
        learner or maml(), regression_task, num_tasks=num_tasks, mesh=mesh
    )
    return jm.training.make_train_step(estimator, outer_tx or optax.adam(1e-2))


def _validate(meta_params):
    found = jm.training.evaluate(
        LEARNER, meta_params, regression_task, num_tasks=10, key=jax.random.key(7)
    )
    return {"loss": found.loss.mean[-1]}


LEARNER = maml()


class TestStep:
    def test_is_the_mean_gradient_through_the_outer_rule(self, key):
        """One step by hand: keys split as documented, gradients averaged, SGD."""
        learner = maml()
        estimator = jm.estimators.over_tasks(learner, regression_task, num_tasks=3)
        init, step = jm.training.make_train_step(estimator, optax.sgd(0.1))
        state = init(key)
        after, info = step(state)
        _, step_key = jax.random.split(state.key)
        grads, losses = [], []
        for task_key in jax.random.split(step_key, 3):
            sample_key, learner_key = jax.random.split(task_key)
            g, i = learner.meta_grad(
                learner_key, state.meta_params, regression_task(sample_key)
            )
            grads.append(g)
            losses.append(i.loss)
        expected = jax.tree.map(
            lambda p, *g: p - 0.1 * sum(g) / 3, state.meta_params, *grads
        )
        chex.assert_trees_all_close(after.meta_params, expected, rtol=1e-5)
        np.testing.assert_allclose(info.loss, losses, rtol=1e-5)

    def test_seeds_at_once_are_seeds_one_by_one(self, key):
        with jax.enable_x64(True):
            init, step = _train_step()
            keys = jax.random.split(key, 3)
            together, _ = jax.jit(jax.vmap(step))(jax.vmap(init)(keys))
            for s, seed_key in enumerate(keys):
                alone, _ = jax.jit(step)(init(seed_key))
                mine = jax.tree.map(lambda x: x[s], together.meta_params)
                chex.assert_trees_all_close(mine, alone.meta_params, rtol=1e-10)

    def test_data_of_the_sampler_are_leaves_of_the_step(self):
        images = np.zeros((7, 4, 8, 8), np.uint8)
        sample_task = jm.tasks.few_shot(images, ways=2, shots=1, queries=1)
        learner = jm.maml(
            jm.models.MLP([2]),
            jm.losses.cross_entropy,
            inner_tx=optax.sgd(0.1),
            inner_steps=1,
        )
        estimator = jm.estimators.over_tasks(learner, sample_task, num_tasks=2)
        _, step = jm.training.make_train_step(estimator, optax.sgd(0.1))
        assert (7, 4, 8, 8, 1) in [x.shape for x in jax.tree.leaves(step)]


class TestOverTasks:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"num_tasks": 0}, "`num_tasks` must be an int >= 1, got 0"),
            ({"num_tasks": 4, "tasks_per_chunk": 3}, "`tasks_per_chunk` must divide"),
            (
                {"num_tasks": 4, "tasks_per_chunk": 0},
                "`tasks_per_chunk` must be an int",
            ),
        ],
    )
    def test_bad_counts_are_named(self, options, message, key):
        with pytest.raises(ValueError, match=message):
            estimator = jm.estimators.over_tasks(maml(), regression_task, **options)
            jax.eval_shape(
                lambda: estimator.estimate(key, estimator.init(key)[0], None)
            )

    def test_tasks_must_divide_into_devices(self):
        with pytest.raises(ValueError, match="multiple of the mesh's 8 devices, got 6"):
            jm.estimators.over_tasks(
                maml(), regression_task, num_tasks=6, mesh=jm.training.task_mesh()
            )

    def test_a_mesh_of_nothing_is_named(self):
        with pytest.raises(ValueError, match="`devices` is empty"):
            jm.training.task_mesh([])


class TestEvaluate:
    def test_interval_by_hand(self):
        got = jm.training.mean_with_interval(jnp.array([1.0, 2.0, 3.0, 4.0]))
        np.testing.assert_allclose(got.mean, 2.5)
        np.testing.assert_allclose(got.half_width, 1.96 * np.sqrt(5 / 3) / 2, rtol=1e-6)

    def test_interval_covers_the_mean_as_often_as_it_says(self, key):
        draws = jax.random.normal(key, (2000, 50))
        mean, interval, _ = jax.vmap(jm.training.mean_with_interval)(draws)
        assert abs(float(jnp.mean(jnp.abs(mean) < interval)) - 0.95) < 0.025

    def test_interval_of_one_task_is_not_a_number(self):
        assert jnp.isnan(jm.training.mean_with_interval(jnp.ones(1)).half_width)

    def test_interval_of_half_precision_is_not_rounded(self):
        per_task = (jnp.arange(1000) % 7).astype(jnp.bfloat16)
        found = jm.training.mean_with_interval(per_task)
        expected = np.mean(np.arange(1000) % 7)
        np.testing.assert_allclose(found.mean, expected, rtol=1e-3)

    def test_interval_needs_a_task_axis(self):
        with pytest.raises(ValueError, match=r"shape \[T, ...\]"):
            jm.training.mean_with_interval(jnp.ones(()))

    def test_is_the_loop_over_tasks(self, key):
        learner = maml()
        meta_params = learner.init(key, regression_task(key))
        result = jm.training.evaluate(
            learner, meta_params, regression_task, num_tasks=3, key=key, inner_steps=4
        )
        for task_key, losses in zip(
            jax.random.split(key, 3), result.loss.per_task, strict=True
        ):
            sample_key, learner_key = jax.random.split(task_key)
            task = regression_task(sample_key)
            one = learner.evaluate(learner_key, meta_params, task, inner_steps=4)
            np.testing.assert_allclose(losses, one.loss, rtol=1e-5)

    def test_mesh_and_chunks_change_nothing(self, key):
        learner = maml()
        meta_params = learner.init(key, regression_task(key))
        run = lambda **options: jm.training.evaluate(
            learner, meta_params, regression_task, num_tasks=8, key=key, **options
        )
        plain = run()
        chex.assert_trees_all_close(run(mesh=jm.training.task_mesh()), plain, rtol=1e-5)
        chex.assert_trees_all_close(run(tasks_per_chunk=3), plain, rtol=1e-5)

    def test_tasks_need_not_divide_into_devices(self, key):
        learner = maml()
        meta_params = learner.init(key, regression_task(key))
        result = jm.training.evaluate(
            learner,
            meta_params,
            regression_task,
            num_tasks=6,
            key=key,
            mesh=jm.training.task_mesh(),
        )
        assert result.loss.per_task.shape == (6, 3)

    def test_prints_a_table(self, key):
        learner = maml()
        meta_params = learner.init(key, regression_task(key))
        result = jm.training.evaluate(
            learner, meta_params, regression_task, num_tasks=5, key=key
        )
        lines = str(result).splitlines()
        assert lines[0].split() == ["inner", "steps", "loss"]
        assert lines[2].split()[1] == f"{float(result.loss.mean[1]):.4g}"

    def test_prints_a_table_for_each_seed(self, key):
        learner = maml()
        meta_params = jax.vmap(lambda k: learner.init(k, regression_task(k)))(
            jax.random.split(key, 2)
        )
        evaluate = lambda params: jm.training.evaluate(
            learner, params, regression_task, num_tasks=5, key=key
        )
        result = jax.vmap(evaluate)(meta_params)
        assert result.loss.mean.shape == (2, 3)
        one = evaluate(jax.tree.map(lambda x: x[1], meta_params))
        first, second = str(result).split("[1]\n")
        assert first.startswith("[0]\ninner steps")
        assert second == str(one) == repr(one)

    def test_parameters_of_another_model_are_named(self, key):
        with pytest.raises(
            ValueError, match="`meta_params` does not match this architecture"
        ):
            jm.training.evaluate(maml(), {}, regression_task, num_tasks=2, key=key)

    @pytest.mark.parametrize("name", ["num_tasks", "inner_steps", "tasks_per_chunk"])
    def test_bad_counts_are_named(self, name, key):
        options = {"num_tasks": 2, name: -1}
        with pytest.raises(ValueError, match=f"`{name}` must be an int >= 1, got -1"):
            jm.training.evaluate(maml(), None, regression_task, key=key, **options)


def _fit(directory=None, num_steps=40, **options):
    options = {"log_every": 5, "validate_every": 10, "validate": _validate} | options
    return jm.training.fit(
        _train_step(LEARNER),
        num_steps=num_steps,
        key=jax.random.key(3),
        directory=directory,
        **options,
    )


def _records(directory):
    records = jm.training.read_metrics(directory / "metrics.jsonl")
    return [{k: v for k, v in r.items() if k != "seconds"} for r in records]


class TestFit:
    def test_is_the_plain_loop_of_steps(self):
        init, step = _train_step(LEARNER)
        state = init(jax.random.key(3))
        for _ in range(7):
            state, info = jax.jit(step)(state)
        records = []
        result = _fit(
            num_steps=7,
            validate=None,
            log_every=7,
            validate_every=7,
            report=records.append,
        )
        chex.assert_trees_all_close(
            result.state.meta_params, state.meta_params, rtol=1e-5
        )
        assert [r["step"] for r in records] == [1, 7]
        assert abs(records[0]["loss"] / info.loss.mean() - 1) < 10

    def test_stopped_and_resumed_equals_uninterrupted(self, tmp_path):
        whole = _fit(tmp_path / "whole")

        class Killed(Exception):
            pass

        def kill_at(step):
            def report(record):
                if record["step"] == step:
                    raise Killed

            return report

        for step in (5, 10, 25, 35):  # Before, at and between checkpoints.
            with pytest.raises(Killed):
                _fit(tmp_path / "parts", report=kill_at(step))
        resumed = _fit(tmp_path / "parts")
        chex.assert_trees_all_equal(resumed.state, whole.state)
        chex.assert_trees_all_equal(resumed.best, whole.best)
        assert _records(tmp_path / "parts") == _records(tmp_path / "whole")

    def test_a_finished_run_is_not_run_again(self, tmp_path):
        first = _fit(tmp_path)
        reports = []
        again = _fit(tmp_path, report=reports.append)
        assert not reports
        chex.assert_trees_all_equal(again, first)

    def test_best_is_the_least_validation_loss(self, tmp_path):
        result = _fit(tmp_path, num_steps=60)
        losses = {
            r["step"]: r["validation_loss"]
            for r in _records(tmp_path)
            if "validation_loss" in r
        }
        assert int(result.best.step) == min(losses, key=losses.get)
        np.testing.assert_allclose(
            _validate(result.best.meta_params)["loss"], min(losses.values()), rtol=1e-6
        )

    def test_patience_stops_early_and_stays_stopped(self, tmp_path):
        calls = iter([3.0, 2.0, 2.5, 2.6, 9.0, 9.0])
        result = _fit(
            tmp_path,
            num_steps=100,
            validate=lambda _: {"loss": next(calls)},
            patience=2,
        )
        assert result.stopped_early
        assert (int(result.state.step), int(result.best.step)) == (40, 20)
        again = _fit(
            tmp_path,
            num_steps=100,
            validate=lambda _: {"loss": next(calls)},
            patience=2,
        )
        assert int(again.state.step) == 40

    def test_patience_counts_from_the_start_when_nothing_is_best(self):
        result = _fit(
            num_steps=100, validate=lambda _: {"loss": float("nan")}, patience=2
        )
        assert (int(result.state.step), result.stopped_early) == (20, True)

    def test_of_equal_validations_the_first_stays_best_when_resumed(self, tmp_path):
        options = {"validate": lambda _: {"loss": 1.0}, "patience": 4}
        whole = _fit(tmp_path / "whole", num_steps=100, **options)
        _fit(tmp_path / "parts", num_steps=30, **options)
        parts = _fit(tmp_path / "parts", num_steps=100, **options)
        assert (int(whole.state.step), int(whole.best.step)) == (50, 10)
        chex.assert_trees_all_equal(parts, whole)

    def test_a_run_made_longer_keeps_validating(self, tmp_path):
        _fit(tmp_path, num_steps=13)
        _fit(tmp_path, num_steps=40)
        validated = {r["step"]: "validation_loss" in r for r in _records(tmp_path)}
        assert validated == {
            **{1: False, 5: False, 10: True, 13: True},
            **{15: False, 20: True, 25: False, 30: True, 35: False, 40: True},
        }

    def test_what_is_not_finite_is_not_saved(self, tmp_path):
        """A step's loss is that before its update, which is NaN at step 20 here."""
        poison = optax.scale_by_schedule(
            lambda count: jnp.where(count == 19, jnp.nan, 1.0)
        )
        step = _train_step(LEARNER, outer_tx=optax.chain(optax.sgd(0.01), poison))
        with pytest.raises(
            jm.training.DivergedError,
            match="norm of the meta-parameters is nan at step",
        ):
            jm.training.fit(
                step,
                num_steps=40,
                key=jax.random.key(3),
                directory=tmp_path,
                log_every=5,
                validate_every=10,
            )
        checkpoints = jm.training.open_checkpoints(tmp_path / "checkpoints")
        assert checkpoints.last_step() == 10
        checkpoints.close()

    def test_a_metric_that_is_not_finite_is_named(self):
        learner = maml(metrics={"odd": lambda outputs, targets: jnp.nan})
        with pytest.raises(jm.training.DivergedError, match="training odd is nan at"):
            jm.training.fit(_train_step(learner), num_steps=5, key=jax.random.key(3))

    def test_metrics_may_not_hide_what_a_record_has(self):
        with pytest.raises(ValueError, match=r"may not be called \['step'\]"):
            maml(metrics={"step": lambda outputs, targets: jnp.mean(outputs)})

    def test_validate_must_return_a_loss(self):
        with pytest.raises(ValueError, match=r"`validate` must return a `loss`.*'acc'"):
            _fit(validate=lambda _: {"acc": 1.0})

    def test_one_process_at_a_time(self, tmp_path):
        def second(record):
            with pytest.raises(ValueError, match="another process is training in"):
                _fit(tmp_path)

        whole = _fit(tmp_path, num_steps=10, report=second)
        chex.assert_trees_all_equal(_fit(tmp_path, num_steps=10), whole)  # Let go of.

    def test_divergence_is_said_and_checkpoints_stay(self, tmp_path):
        _fit(tmp_path, num_steps=10)
        wild = _train_step(LEARNER, outer_tx=optax.adam(1e30))
        with pytest.raises(
            jm.training.DivergedError,
            match=r"Lower the inner or outer.*optimizers\.clip_by_global_norm",
        ):
            jm.training.fit(
                wild,
                num_steps=40,
                key=jax.random.key(3),
                directory=tmp_path,
                log_every=5,
                validate=_validate,
                validate_every=10,
            )
        checkpoints = jm.training.open_checkpoints(tmp_path / "checkpoints")
        assert checkpoints.last_step() == 10
        checkpoints.close()

    def test_resumes_under_a_mesh(self, tmp_path):
        mesh = jm.training.task_mesh(jax.devices()[:4])
        options = {
            "key": jax.random.key(3),
            "directory": tmp_path,
            "log_every": 5,
            "validate_every": 5,
        }
        step = _train_step(LEARNER, mesh=mesh)
        jm.training.fit(step, num_steps=5, **options)
        sharded = jm.training.fit(step, num_steps=10, **options)
        plain = _fit(num_steps=10, validate=None)
        chex.assert_trees_all_close(
            sharded.state.meta_params, plain.state.meta_params, rtol=1e-4
        )

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"num_steps": 0}, "`num_steps` must be an int >= 1, got 0"),
            ({"num_steps": 2**31}, "`num_steps` must be less than 2"),
            ({"log_every": 0}, "`log_every` must be an int >= 1, got 0"),
            (
                {"validate_every": 7},
                "`validate_every` must be a multiple of `log_every`",
            ),
            ({"patience": 0}, "`patience` must be an int >= 1, got 0"),
            ({"patience": 2, "validate": None}, "`patience` requires `validate`"),
        ],
    )
    def test_bad_counts_are_named(self, options, message):
        with pytest.raises(ValueError, match=message):
            _fit(**options)


class TestDamage:
    """Nothing that a run has saved is lost, and what is wrong is said in a line."""

    def test_truncated_checkpoint(self, tmp_path):
        _fit(tmp_path, num_steps=20)
        files = sorted((tmp_path / "checkpoints" / "20").rglob("*"))
        for path in files:
            if path.is_file() and path.stat().st_size > 100:
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(
            ValueError, match=r"checkpoints/20 cannot be restored: it is"
        ):
            _fit(tmp_path)
        assert sorted((tmp_path / "checkpoints" / "20").rglob("*")) == files

    def test_foreign_checkpoint(self, tmp_path):
        _fit(tmp_path, num_steps=20)
        other = jm.maml(
            jm.models.MLP([3, 1]),
            jm.losses.squared_error,
            inner_tx=optax.sgd(0.1),
            inner_steps=1,
        )
        with pytest.raises(ValueError, match="damaged or from another"):
            jm.training.fit(
                _train_step(other),
                num_steps=40,
                key=jax.random.key(3),
                directory=tmp_path,
                log_every=5,
                validate_every=10,
            )

    def test_a_metrics_line_cut_short_is_made_again(self, tmp_path):
        whole = _fit(tmp_path / "whole")
        _fit(tmp_path / "parts", num_steps=20)
        with (tmp_path / "parts" / "metrics.jsonl").open("a") as file:
            file.write('{"step": 25, "lo')
        _fit(tmp_path / "parts")
        assert _records(tmp_path / "parts") == _records(tmp_path / "whole")
        assert int(whole.state.step) == 40

    @pytest.mark.parametrize("damage", [b"", b"\xff\xfe garbage\n[1]\n"])
    def test_records_that_are_gone_are_missed(self, damage, tmp_path):
        whole = _fit(tmp_path / "whole")
        _fit(tmp_path / "parts", num_steps=20)
        (tmp_path / "parts" / "metrics.jsonl").write_bytes(damage)
        with pytest.warns(UserWarning, match="no records of the steps after 0 up to"):
            result = _fit(tmp_path / "parts")
        chex.assert_trees_all_equal(result.state, whole.state)
        later = [r for r in _records(tmp_path / "whole") if r["step"] > 20]
        assert _records(tmp_path / "parts") == later

    def test_a_damaged_line_costs_no_other(self, tmp_path):
        _fit(tmp_path, num_steps=20)
        path = tmp_path / "metrics.jsonl"
        first, second, *others = path.read_text().splitlines()
        path.write_text("\n".join([first, second[:-3], *others]) + "\n")
        steps = [r["step"] for r in _records(tmp_path)]
        assert steps == [1, 10, 15, 20]

    def test_directory_that_is_a_file(self, tmp_path):
        (tmp_path / "run").write_text("mine")
        with pytest.raises(OSError, match="`directory` cannot be written"):
            _fit(tmp_path / "run")
        assert (tmp_path / "run").read_text() == "mine"

    def test_full_disk_keeps_the_checkpoint_before(self, tmp_path):
        """A limit on the size of files stands for a full disk."""
        _fit(tmp_path / "run", num_steps=20)
        saved = tmp_path / "copy"
        shutil.copytree(tmp_path / "run", saved)
        code = (
            "import resource, signal, sys, pathlib\n"
            "from tests.training import test_training\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "test_training._fit(sys.argv[1], num_steps=20)\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))\n"
            "try:\n"
            "    test_training._fit(sys.argv[1], num_steps=40)\n"
            "except OSError as error:\n"
            "    print(error)\n"
        )
        assert resource.RLIMIT_FSIZE  # POSIX only.
        done = subprocess.run(
            [sys.executable, "-c", code, str(saved)],
            capture_output=True,
            text=True,
            check=True,
        )
        assert "could not be written" in done.stdout or "cannot be" in done.stdout
        assert "command to resume" in done.stdout
        resumed, whole = _fit(saved), _fit(tmp_path / "run")
        chex.assert_trees_all_equal(resumed.state, whole.state)
        assert _records(saved) == _records(tmp_path / "run")

    def test_save_overwrites_nothing(self, tmp_path):
        jm.training.save(tmp_path / "saved", {"w": jnp.ones(2)})
        with pytest.raises(ValueError, match="`path` already exists"):
            jm.training.save(tmp_path / "saved", {"w": jnp.zeros(2)})
        kept = jm.training.load(tmp_path / "saved", like={"w": jnp.zeros(2)})
        np.testing.assert_array_equal(kept["w"], 1.0)

    def test_save_overwrites_what_it_wrote_if_told(self, tmp_path):
        path = tmp_path / "saved"
        for value in (1.0, 2.0):
            jm.training.save(path, {"w": jnp.full(2, value)}, overwrite=True)
        kept = jm.training.load(path, like={"w": jnp.zeros(2)})
        np.testing.assert_array_equal(kept["w"], 2.0)
        assert [p.name for p in tmp_path.iterdir()] == ["saved"]
        (tmp_path / "mine").mkdir()
        with pytest.raises(ValueError, match="`path` was not written by `save`"):
            jm.training.save(tmp_path / "mine", {"w": jnp.ones(2)}, overwrite=True)

    def test_load_names_what_is_not_there(self, tmp_path):
        with pytest.raises(ValueError, match="`path` holds no saved parameters"):
            jm.training.load(tmp_path / "nothing", like={"w": jnp.zeros(2)})

    def test_load_refuses_other_shapes(self, tmp_path):
        jm.training.save(tmp_path / "saved", {"w": jnp.ones(2)})
        with pytest.raises(ValueError, match="damaged or from another"):
            jm.training.load(tmp_path / "saved", like={"w": jnp.zeros(3)})

    @pytest.mark.parametrize(
        "tree", [jnp.arange(2.0), (jnp.ones(()), {"a": jnp.ones(1)})]
    )
    def test_saves_any_tree(self, tree, tmp_path):
        jm.training.save(tmp_path / "saved", tree)
        chex.assert_trees_all_equal(
            jm.training.load(tmp_path / "saved", like=tree), tree
        )

    def test_load_refuses_other_types(self, tmp_path):
        jm.training.save(tmp_path / "saved", {"w": jnp.array([1.7])})
        like = {"w": jnp.zeros(1, jnp.int32)}
        with pytest.raises(ValueError, match=r"\.w in float32, expected int32"):
            jm.training.load(tmp_path / "saved", like=like)

    def test_resume_refuses_other_types(self, tmp_path):
        with jax.enable_x64(True):
            _fit(tmp_path, num_steps=10, validate=None)
        with pytest.raises(ValueError, match="in float64, expected float32"):
            _fit(tmp_path, num_steps=20, validate=None)

    def test_arrays_without_elements_are_named(self, tmp_path):
        with pytest.raises(ValueError, match=r"shape \(0, 2\) at 'w'"):
            jm.training.save(tmp_path / "saved", {"w": jnp.zeros((0, 2))})
        assert not (tmp_path / "saved").exists()

    def test_what_is_not_finite_is_null_in_json(self, tmp_path):
        _fit(tmp_path, num_steps=10, validate=lambda _: {"loss": float("inf")})
        assert '"validation_loss": null' in (tmp_path / "metrics.jsonl").read_text()
        assert np.isnan(_records(tmp_path)[-1]["validation_loss"])

    def test_metrics_are_json_lines(self, tmp_path):
        _fit(tmp_path, num_steps=20)
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [1, 5, 10, 15, 20]


def _events(path):
    """The scalars of an event file: tag -> (step, value)."""
    from tensorboardX.proto import event_pb2

    data, found = path.read_bytes(), {}
    while data:  # length [8], its checksum [4], the event, its checksum [4]
        size = int.from_bytes(data[:8], "little")
        event = event_pb2.Event.FromString(data[12 : 12 + size])
        found |= {
            value.tag: (event.step, value.simple_value) for value in event.summary.value
        }
        data = data[16 + size :]
    return found


def test_records_reach_tensorboard(tmp_path):
    pytest.importorskip("tensorboardX")
    program = f"""
import jaxmeta as jm
report = jm.training.tensorboard({str(tmp_path / "board")!r})
report({{"step": 5, "loss": 2.0, "validation_loss": 3.0, "seconds": 0.5}})
"""  # All is there when the process has ended.
    subprocess.run([sys.executable, "-c", program], check=True)
    (path,) = (tmp_path / "board").iterdir()
    assert _events(path) == {
        "loss/training": (5, 2.0),
        "loss/validation": (5, 3.0),
        "seconds/training": (5, 0.5),
    }
