"""Every loader, with a small file that it reads, and damage to files.

A row writes the file in a folder; it returns its path and what loads it: a tree, or
other values that can be compared.
"""

import contextlib
import io
import json
import os
import warnings
import zipfile
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization

import jaxmeta as jm
from jaxmeta import recipes, runs
from tests.optimizers._by_hand import published_small_fc_mlp

pytest.importorskip("PIL")
from PIL import Image

WEIGHTS = {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "bias": np.ones(3)}


def png(seed=0, size=8):
    """A picture of random black and white pixels."""
    pixels = 255 * np.random.default_rng(seed).integers(0, 2, (size, size), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def attributes():
    """Four classes of three examples, with attributes, one of them unseen."""
    draw = np.random.default_rng(0)
    return {
        "features": draw.normal(size=(12, 4)).astype("f"),
        "labels": np.repeat(np.arange(4), 3),
        "attributes": draw.normal(size=(4, 5)).astype("f"),
        "unseen": np.array([3]),
    }


def write_npz(folder):
    np.savez(folder / "data.npz", **attributes())
    return folder / "data.npz", lambda: jm.tasks.load_attributes(folder / "data.npz")


def write_mat(folder):
    io = pytest.importorskip("scipy.io")
    data = attributes()
    rows = np.arange(1, 13)[:, None]
    io.savemat(
        folder / "res101.mat",
        {"features": data["features"].T, "labels": data["labels"][:, None] + 1},
    )
    names = np.array([[f"class {i}"] for i in range(4)], object)
    io.savemat(
        folder / "att_splits.mat",
        {
            "att": data["attributes"].T,
            "allclasses_names": names,
            "trainval_loc": rows[:9],
            "test_seen_loc": rows[:2],
            "test_unseen_loc": rows[9:],
        },
    )
    return folder / "att_splits.mat", lambda: jm.tasks.load_attributes(folder)


def write_folder(folder):
    for name in ("cat", "dog"):
        (folder / name).mkdir()
        (folder / name / "1.png").write_bytes(png(len(name)))
    return folder / "dog" / "1.png", lambda: jm.tasks.load_folder(folder, size=8)


def write_stream(folder):
    """A stream of files, which decodes them one by one."""
    pytest.importorskip("grain")
    paths = [folder / f"{i}.png" for i in range(4)]
    for i, path in enumerate(paths):
        path.write_bytes(png(i))

    def load():
        stream = jm.tasks.stream_few_shot(
            paths,
            [0, 0, 1, 1],
            ways=2,
            shots=1,
            queries=1,
            num_tasks=1,
            transform=lambda path: jm.tasks.load_image(path, size=8, channels=1),
            num_threads=1,
        )
        return next(stream.read(0))

    return paths[0], load


def write_lists(folder):
    (folder / "images").mkdir()
    for part in ("train", "val", "test"):
        (folder / "images" / f"{part}.png").write_bytes(png())
        (folder / f"{part}.csv").write_text(f"filename,label\n{part}.png,n01\n")
    return folder / "train.csv", lambda: jm.tasks.load_mini_imagenet(folder, size=8)


def _lake_files():
    files = {"run01/class_labels.txt": ""}
    for i in (1, 2):
        files[f"run01/training/class0{i}.png"] = png(i)
        files[f"run01/test/item0{i}.png"] = png(10 + i)
        line = f"run01/test/item0{i}.png run01/training/class0{i}.png\n"
        files["run01/class_labels.txt"] += line
    return files


def write_lake(folder, **changes):
    path = folder / "runs.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (_lake_files() | changes).items():
            archive.writestr(name, content)
    return path, lambda: jm.tasks.load_lake_runs(path, size=8)


def write_drawings(folder):
    """The archive that Lake's runs can be made of."""
    path = folder / "images_evaluation.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(10 * 20 * 4):
            alphabet, character, person = i // 80, i // 4 % 20, i % 4
            name = f"alphabet{alphabet}/character{character + 1:02}"
            file = f"{i // 4:04}_{person + 1:02}.png"
            archive.writestr(f"images_evaluation/{name}/{file}", png(i))

    def load():
        made = jm.tasks.make_lake_runs(path, folder / "runs.zip")
        return np.frombuffer(made.read_bytes(), np.uint8)

    return path, load


def write_records(folder):
    """MNIST as tensorflow-datasets keeps it."""
    from tests.tasks.test_labelled import make_data

    (folder / "files").mkdir()
    make_data(folder / "files", folder / "data", names=("mnist",))
    (path,) = (folder / "data").rglob("mnist-train.array_record*")

    def load():
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_CACHE_HOME", os.devnull)
            return jm.tasks.load_mnist(folder / "data")

    return path, load


def write_safetensors(folder):
    path = folder / "weights.safetensors"
    jm.training.save(path, WEIGHTS)
    return path, lambda: jm.training.load(path, like=_like(), allow_nonfinite=True)


def _like():
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), WEIGHTS)


def write_card(folder):
    path = folder / "weights.safetensors"
    jm.training.save(path, WEIGHTS, card={"name": "x", "trained": [1, 2, {"a": None}]})
    return path.with_suffix(".json"), lambda: jm.training.load_card(path)


def write_weights_folder(folder):
    path = folder / "weights"
    weights = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), WEIGHTS)
    jm.training.save(path, weights)
    load = lambda: jm.training.load(path, like=weights)
    return next(path.glob("d/*")), load


def write_published(folder):
    """An optimizer's weights in flax's msgpack."""
    path = folder / "theta.state"
    theta = jm.optimizers.small_fc_mlp().init(jax.random.key(0))
    tree = published_small_fc_mlp(theta)
    path.write_bytes(serialization.msgpack_serialize(tree))
    grads = jnp.array([[0.5, -1.0], [2.0, 0.1]])

    def load():
        tx = jm.optimizers.load_small_fc_mlp(path)
        return tx.update(grads, tx.init(grads), grads)[0]

    return path, load


def write_vgg16(folder):
    path = folder / "vgg16.npz"
    kernel = np.random.default_rng(0).normal(size=(3, 3, 3, 2)).astype("f")
    np.savez(path, **{"conv1_1/kernel": kernel, "conv1_1/bias": np.ones(2, "f")})
    load = lambda: jax.tree.leaves(jm.models.vgg16_features(path, ["conv1_1"]))
    return path, load


def write_checkpoint(folder, pattern="default/d/*"):
    weights = jax.tree.map(jnp.asarray, WEIGHTS)
    state = jm.TrainState(jnp.asarray(1), weights, {}, {}, jax.random.key(0))
    with contextlib.closing(jm.training.open_checkpoints(folder)) as checkpoints:
        checkpoints.save(state, loss=0.5)

    def load():
        with contextlib.closing(jm.training.open_checkpoints(folder)) as checkpoints:
            return checkpoints.best(), checkpoints.restore(1, state).meta_params

    return next((folder / "1").glob(pattern)), load


def write_checkpoint_metrics(folder):
    return write_checkpoint(folder, "metrics/metrics")


def _write_run(folder):
    config = {"name": "x", "recipe": recipes.to_json(recipes.RECIPES[recipes.DEFAULT])}
    (folder / "config.json").write_text(json.dumps(config))
    return lambda: runs.read(folder)


def write_config(folder):
    return folder / "config.json", _write_run(folder)


def write_metrics(folder):
    read, path = _write_run(folder), folder / "metrics.jsonl"
    lines = [json.dumps({"step": i, "loss": 1 / i}) for i in range(1, 9)]
    path.write_text("\n".join(lines) + "\n")
    return path, lambda: runs.read_records(read())


def write_summary(folder):
    read, path = _write_run(folder), folder / "summary.json"
    path.write_text(json.dumps({"steps": 8, "test": {"loss": [0.5, None]}}))
    return path, lambda: runs.read_summary(read())


LOADERS: dict[str, Callable] = {
    "npz": write_npz,
    "mat": write_mat,
    "folder": write_folder,
    "stream": write_stream,
    "csv": write_lists,
    "zip": write_lake,
    "zip of drawings": write_drawings,
    "records": write_records,
    "safetensors": write_safetensors,
    "card": write_card,
    "weights' folder": write_weights_folder,
    "msgpack": write_published,
    "vgg16": write_vgg16,
    "checkpoint": write_checkpoint,
    "checkpoint's metrics": write_checkpoint_metrics,
    "config": write_config,
    "metrics": write_metrics,
    "summary": write_summary,
}


def mutated(content, draw):
    """Flipped bytes, a piece removed, doubled or replaced, or the end cut off."""
    content = bytearray(content)
    at, other = sorted(draw.integers(0, len(content), 2).tolist())
    kind = draw.integers(5)
    if kind == 0:
        for i in draw.integers(0, len(content), 1 + len(content) // 100):
            content[i] ^= int(draw.integers(1, 256))
    elif kind == 1:
        del content[at : min(other, at + 40)]
    elif kind == 2:
        content[at:at] = content[at : at + 40]
    elif kind == 3:
        content[at : at + 4] = bytes(4) if draw.integers(2) else b"\xff" * 4
    else:
        del content[at:]
    return bytes(content)


def outcome(load, expected, *names):
    """How a damaged file is read: "error", "equal" or "other values".

    Args:
      load: loads it; errors other than a ValueError or a FileNotFoundError are raised.
      expected: what it held before.
      names: one of these must be in the error, if a quoted argument is not.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of Pillow, about damaged metadata.
        try:
            found = load()
        except (ValueError, FileNotFoundError) as error:
            assert "`" in str(error) or any(x in str(error) for x in names), error
            return "error"
    return "equal" if _equal(found, expected) else "other values"


def _equal(found, expected):
    found, expected = (jax.tree.flatten(x) for x in (found, expected))
    return found[1] == expected[1] and all(
        np.array_equal(x, y, equal_nan=np.asarray(x).dtype.kind == "f")
        for x, y in zip(found[0], expected[0], strict=True)
    )
