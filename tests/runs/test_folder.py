"""Folders of runs that are read while the runs go on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmeta as jm
from jaxmeta.runs import _folder


def _state(step):
    return jm.TrainState(
        step=jnp.asarray(step),
        meta_params={"w": jnp.full(3, float(step))},
        carry={},
        opt_state={},
        key=jax.random.key(step),
    )


def _save(folder, step):
    checkpoints = jm.training.open_checkpoints(folder)
    checkpoints.save(_state(step))
    checkpoints.close()


def test_a_checkpoint_that_is_replaced_while_it_is_read(tmp_path, monkeypatch):
    _save(tmp_path, 1)
    restore = jm.training.Checkpoints.restore
    tried = []

    def restore_late(self, step, like):
        tried.append(step)
        if step < 3:
            _save(tmp_path, step + 1)  # Drops the one before.
        return restore(self, step, like)

    monkeypatch.setattr(jm.training.Checkpoints, "restore", restore_late)
    state = _folder._best_state(tmp_path, _state(0))
    assert tried == [1, 2, 3]
    np.testing.assert_array_equal(state.meta_params["w"], np.full(3, 3.0))


def test_a_damaged_checkpoint_is_not_waited_for(tmp_path):
    _save(tmp_path, 1)
    for path in (tmp_path / "1" / "default").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"checkpoint .* cannot be restored"):
        _folder._best_state(tmp_path, _state(0))
