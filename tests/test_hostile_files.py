"""Files that are damaged or made to harm: a clear error, or what was written."""

import csv

import numpy as np
import pytest

import jaxmeta as jm
from tests import _loaders

pytest.importorskip("PIL")
from PIL import Image

MUTATIONS = 50
# Half a second each: the reader of .mat files is a process of its own, for example.
SLOW = {"mat": 6}


# Reads that orbax has begun end after the first one has failed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", _loaders.LOADERS)
def test_a_mutated_file_is_read_or_explained(name, tmp_path):
    path, load = _loaders.LOADERS[name](tmp_path)
    content, draw = path.read_bytes(), np.random.default_rng(0)
    expected, found = load(), set()
    for _ in range(SLOW.get(name, MUTATIONS)):
        path.write_bytes(_loaders.mutated(content, draw))
        found.add(_loaders.outcome(load, expected, str(tmp_path)))
    assert found & {"error", "other values"}
    path.write_bytes(content)
    assert _loaders.outcome(load, expected) == "equal"


def test_a_crash_of_the_mat_reader_is_an_error(tmp_path, monkeypatch):
    from jaxmeta import _archives

    _, load = _loaders.write_mat(tmp_path)
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
    path, load = _loaders.write_lake(tmp_path, **large)
    assert path.stat().st_size < 1e5
    with pytest.raises(ValueError, match="unpacks to 10,0"):
        load()

    image = tmp_path / "large.png"
    Image.new("L", (3000, 2000)).save(image)
    with pytest.raises(ValueError, match="3000 x 2000 pixels are more than `max_pix"):
        jm.tasks.load_image(image, size=8, channels=1, max_pixels=10**6)


def test_cards_that_are_too_large_or_deep_are_refused(tmp_path):
    card, load = _loaders.write_card(tmp_path)
    for content in ('{"a": "' + "x" * 2**20 + '"}', "[" * 10**5 + "]" * 10**5):
        card.write_text(content)
        with pytest.raises(ValueError, match="is damaged"):
            load()


@pytest.mark.parametrize("name", ["config", "metrics", "summary"])
def test_files_of_a_run_that_are_nested_too_deeply_are_explained(name, tmp_path):
    path, load = _loaders.LOADERS[name](tmp_path)
    for depth in (100, 900, 10**5):
        path.write_text('{"a":' * depth + "1" + "}" * depth)
        with pytest.raises(ValueError, match=str(tmp_path)):
            load()


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "a/../../b.png"])
def test_a_list_stays_in_its_folder(name, tmp_path):
    path, load = _loaders.write_lists(tmp_path)
    (tmp_path / "secret.png").write_bytes(_loaders.png())
    path.write_text(f"filename,label\n{name},n01\n")
    with pytest.raises(ValueError, match=r"Line 2 of .* names a file outside images/"):
        load()


def test_one_huge_class_is_not_padded_to(tmp_path):
    """2,000 small classes and one of 200,000 would be 118 GiB."""
    path, _ = _loaders.write_lists(tmp_path)
    rows = [(f"{i}.png", f"n{i}") for i in range(2000)]
    rows += [("x.png", "huge")] * 200_000
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("filename", "label"), *rows])
    with pytest.raises(
        ValueError, match=r"'huge' has 200,000 images, the median class"
    ):
        jm.tasks.load_mini_imagenet(tmp_path, size=84)


def test_a_field_that_is_too_long_is_explained(tmp_path):
    path, load = _loaders.write_lists(tmp_path)
    path.write_text(f"filename,label\n{'x' * 200_000},n01\n")
    with pytest.raises(ValueError, match="is damaged or not a list"):
        load()


@pytest.mark.parametrize(
    ("at", "value"), [(6, b"\x01"), (8, b"\x63\x00")], ids=["encrypted", "compression"]
)
def test_archives_that_cannot_be_read_are_explained(at, value, tmp_path):
    """A flag or a method in the local headers and in the directory."""
    path, load = _loaders.write_lake(tmp_path)
    content = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", at), (b"PK\x01\x02", at + 2)):
        start = -1
        while (start := content.find(mark, start + 1)) >= 0:
            content[start + offset : start + offset + len(value)] = value
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged"):
        load()


def test_a_query_that_is_a_support_image_is_refused(tmp_path):
    _, load = _loaders.write_lake(
        tmp_path, **{"run01/test/item02.png": _loaders.png(2)}
    )
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
    np.savez(path, **_loaders.attributes() | changes)
    with pytest.raises(ValueError, match=message):
        jm.tasks.load_attributes(path)
