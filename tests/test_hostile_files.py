"""Files that are damaged or made to harm: a clear error, or what was written."""

import contextlib
import csv
import io
import json
import warnings
import zipfile

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmeta as jm
from jaxmeta import recipes, runs

pytest.importorskip("PIL")
from PIL import Image

MUTATIONS = 50
WEIGHTS = {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "bias": np.ones(3)}


def _png(seed=0, size=8):
    pixels = 255 * np.random.default_rng(seed).integers(0, 2, (size, size), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def _attributes():
    draw = np.random.default_rng(0)
    return {
        "features": draw.normal(size=(12, 4)).astype("f"),
        "labels": np.repeat(np.arange(4), 3),
        "attributes": draw.normal(size=(4, 5)).astype("f"),
        "unseen": np.array([3]),
    }


def _write_npz(folder):
    np.savez(folder / "data.npz", **_attributes())
    return folder / "data.npz", lambda: jm.tasks.load_attributes(folder / "data.npz")


def _write_mat(folder):
    io = pytest.importorskip("scipy.io")
    data = _attributes()
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


def _write_folder(folder):
    for name in ("cat", "dog"):
        (folder / name).mkdir()
        (folder / name / "1.png").write_bytes(_png(len(name)))
    return folder / "dog" / "1.png", lambda: jm.tasks.load_folder(folder, size=8)


def _write_lists(folder):
    (folder / "images").mkdir()
    for part in ("train", "val", "test"):
        (folder / "images" / f"{part}.png").write_bytes(_png())
        (folder / f"{part}.csv").write_text(f"filename,label\n{part}.png,n01\n")
    return folder / "train.csv", lambda: jm.tasks.load_mini_imagenet(folder, size=8)


def _lake_files():
    files = {"run01/class_labels.txt": ""}
    for i in (1, 2):
        files[f"run01/training/class0{i}.png"] = _png(i)
        files[f"run01/test/item0{i}.png"] = _png(10 + i)
        line = f"run01/test/item0{i}.png run01/training/class0{i}.png\n"
        files["run01/class_labels.txt"] += line
    return files


def _write_lake(folder, **changes):
    path = folder / "runs.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (_lake_files() | changes).items():
            archive.writestr(name, content)
    return path, lambda: jm.tasks.load_lake_runs(path, size=8)


def _write_safetensors(folder):
    path = folder / "weights.safetensors"
    jm.training.save(path, WEIGHTS)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), WEIGHTS)
    return path, lambda: jm.training.load(path, like=like, allow_nonfinite=True)


def _write_card(folder):
    path = folder / "weights.safetensors"
    jm.training.save(path, WEIGHTS, card={"name": "x", "trained": [1, 2, {"a": None}]})
    return path.with_suffix(".json"), lambda: jm.training.load_card(path)


def _write_checkpoint(folder, pattern="default/d/*"):
    weights = jax.tree.map(jnp.asarray, WEIGHTS)
    state = jm.TrainState(jnp.asarray(1), weights, {}, {}, jax.random.key(0))
    with contextlib.closing(jm.training.open_checkpoints(folder)) as checkpoints:
        checkpoints.save(state, loss=0.5)

    def load():
        with contextlib.closing(jm.training.open_checkpoints(folder)) as checkpoints:
            assert checkpoints.best() == (1, 0.5)
            restored = checkpoints.restore(1, state)
        chex.assert_trees_all_equal(restored.meta_params, weights)

    return next((folder / "1").glob(pattern)), load


def _write_checkpoint_metrics(folder):
    path, load = _write_checkpoint(folder, "metrics/metrics")

    def load_any_loss():
        with contextlib.suppress(AssertionError):
            load()

    return path, load_any_loss


def _write_config(folder):
    config = {"name": "x", "recipe": recipes.to_json(recipes.RECIPES[recipes.DEFAULT])}
    (folder / "config.json").write_text(json.dumps(config))
    return folder / "config.json", lambda: runs.read(folder)


LOADERS = {
    "npz": _write_npz,
    "mat": _write_mat,
    "folder": _write_folder,
    "csv": _write_lists,
    "zip": _write_lake,
    "safetensors": _write_safetensors,
    "card": _write_card,
    "checkpoint": _write_checkpoint,
    "checkpoint's metrics": _write_checkpoint_metrics,
    "config": _write_config,
}


def _mutated(content, draw):
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


# Reads that orbax has begun end after the first one has failed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", LOADERS)
def test_a_mutated_file_is_read_or_explained(name, tmp_path):
    path, load = LOADERS[name](tmp_path)
    content, draw = path.read_bytes(), np.random.default_rng(0)
    load()
    refused = 0
    # The reader of .mat files is a process of its own, half a second each.
    for _ in range(MUTATIONS if name != "mat" else 6):
        path.write_bytes(_mutated(content, draw))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Of Pillow, about damaged metadata.
            try:
                load()
            except (ValueError, FileNotFoundError) as error:
                assert str(tmp_path) in str(error) or "`" in str(error), error
                refused += 1
    assert refused


def test_a_crash_of_the_mat_reader_is_an_error(tmp_path, monkeypatch):
    from jaxmeta import _archives

    _, load = _write_mat(tmp_path)
    crash = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    monkeypatch.setattr(_archives, "_READ_MAT", crash)
    with pytest.raises(ValueError, match=r"is damaged .*the reader crashed"):
        load()


def test_files_that_unpack_to_too_much_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, features=np.zeros((2000, 1000)), **{"labels": [0]})
    assert path.stat().st_size < 1e5
    with pytest.raises(
        ValueError, match=r"unpacks to 16,\d+,\d+ bytes, more than `max"
    ):
        jm.tasks.load_attributes(path, max_bytes=10**6)

    from jaxmeta.tasks import _lake_runs

    monkeypatch.setattr(_lake_runs, "_MAX_BYTES", 10**6)
    large = {"run01/training/class03.png": bytes(10**7)}
    path, load = _write_lake(tmp_path, **large)
    assert path.stat().st_size < 1e5
    with pytest.raises(ValueError, match="unpacks to 10,0"):
        load()

    image = tmp_path / "large.png"
    Image.new("L", (3000, 2000)).save(image)
    with pytest.raises(ValueError, match="3000 x 2000 pixels are more than `max_pix"):
        jm.tasks.load_image(image, size=8, channels=1, max_pixels=10**6)


def test_cards_that_are_too_large_or_deep_are_refused(tmp_path):
    card, load = _write_card(tmp_path)
    for content in ('{"a": "' + "x" * 2**20 + '"}', "[" * 10**5 + "]" * 10**5):
        card.write_text(content)
        with pytest.raises(ValueError, match="is damaged"):
            load()


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "a/../../b.png"])
def test_a_list_stays_in_its_folder(name, tmp_path):
    path, load = _write_lists(tmp_path)
    (tmp_path / "secret.png").write_bytes(_png())
    path.write_text(f"filename,label\n{name},n01\n")
    with pytest.raises(ValueError, match=r"Line 2 of .* names a file outside images/"):
        load()


def test_one_huge_class_is_not_padded_to(tmp_path):
    """2,000 small classes and one of 200,000 would be 118 GiB."""
    path, _ = _write_lists(tmp_path)
    rows = [(f"{i}.png", f"n{i}") for i in range(2000)]
    rows += [("x.png", "huge")] * 200_000
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("filename", "label"), *rows])
    with pytest.raises(
        ValueError, match=r"'huge' has 200,000 images, the median class"
    ):
        jm.tasks.load_mini_imagenet(tmp_path, size=84)


def test_a_field_that_is_too_long_is_explained(tmp_path):
    path, load = _write_lists(tmp_path)
    path.write_text(f"filename,label\n{'x' * 200_000},n01\n")
    with pytest.raises(ValueError, match="is damaged or not a list"):
        load()


@pytest.mark.parametrize(
    ("at", "value"), [(6, b"\x01"), (8, b"\x63\x00")], ids=["encrypted", "compression"]
)
def test_archives_that_cannot_be_read_are_explained(at, value, tmp_path):
    """A flag or a method in the local headers and in the directory."""
    path, load = _write_lake(tmp_path)
    content = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", at), (b"PK\x01\x02", at + 2)):
        start = -1
        while (start := content.find(mark, start + 1)) >= 0:
            content[start + offset : start + offset + len(value)] = value
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged"):
        load()


def test_a_query_that_is_a_support_image_is_refused(tmp_path):
    _, load = _write_lake(tmp_path, **{"run01/test/item02.png": _png(2)})
    with pytest.raises(ValueError, match=r"item02.png is the drawing of .*class02.png"):
        load()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(bad, tmp_path):
    weights = {
        "kernel": np.array([1.0, bad], np.float32),
        "bias": np.ones(2, np.float32),
    }
    for path in (tmp_path / "weights.safetensors", tmp_path / "folder"):
        jm.training.save(path, weights)
        with pytest.raises(ValueError, match=r"not finite, at \['kernel'\]"):
            jm.training.load(path, like=weights)
        found = jm.training.load(path, like=weights, allow_nonfinite=True)
        np.testing.assert_array_equal(found["kernel"], weights["kernel"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": np.ones((12, 4), complex)}, "must be real numbers, got dtype co"),
        ({"features": np.full((12, 4), "x")}, "must be real numbers, got dtype <U1"),
        ({"attributes": np.full((4, 5), 1e300)}, "not finite in float32"),
        ({"names": np.array("all")}, "must name each of the 4 classes, got 1"),
    ],
)
def test_numbers_that_are_none_are_refused(changes, message, tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, **_attributes() | changes)
    with pytest.raises(ValueError, match=message):
        jm.tasks.load_attributes(path)
