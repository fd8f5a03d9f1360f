"""CIFAR-FS and FC100 from a made CIFAR-100 in the official format."""

import io
import json
import os
import pathlib
import tarfile

import numpy as np
import pytest

import jaxmeta as jm
from jaxmeta.tasks import _cifar_fs, _labelled_builder, download
from tests.tasks.test_datasets import _serve

SPLITS = pathlib.Path(__file__).parents[3] / "shared" / "data" / "splits"
LOADERS = [jm.tasks.load_cifar_fs, jm.tasks.load_fc100]

FINE = sorted(" ".join(_cifar_fs.CIFAR_FS).split())
COARSE = sorted(" ".join(_cifar_fs.FC100).split())
# Class i is in superclass 7 i mod 20 here: five classes each, no neighbours.
SUPERCLASS = {fine: COARSE[7 * i % 20] for i, fine in enumerate(FINE)}
EACH = {"train": 2, "test": 1}  # photographs of every class


def _photographs(split):
    """Images [100, n, 32, 32, 3] of a split, class by class."""
    rng = np.random.default_rng(list(EACH).index(split))
    return rng.integers(0, 256, (100, EACH[split], 32, 32, 3), dtype=np.uint8)


def _rows(split):
    """The rows of the binary file: coarse label, label, then plane after plane."""
    planes = _photographs(split).transpose(1, 0, 4, 2, 3).reshape(-1, 3 * 32 * 32)
    fine = np.tile(np.arange(100, dtype=np.uint8), EACH[split])
    coarse = (7 * fine.astype(int) % 20).astype(np.uint8)
    return np.concatenate([coarse[:, None], fine[:, None], planes], 1).tobytes()


@pytest.fixture(scope="module")
def made_dir(tmp_path_factory):
    """A data_dir prepared, through a real download, from a made archive."""
    pytest.importorskip("tensorflow_datasets")
    files, data_dir = tmp_path_factory.mktemp("files"), tmp_path_factory.mktemp("data")
    members = {
        "coarse_label_names.txt": "\n".join(COARSE).encode() + b"\n",
        "fine_label_names.txt": "\n".join(FINE).encode() + b"\n",
        "train.bin": _rows("train"),
        "test.bin": _rows("test"),
    }
    with tarfile.open(files / "cifar.tar.gz", "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(f"cifar-100-binary/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    with _serve(files) as host, pytest.MonkeyPatch.context() as patch:
        patch.setattr(_labelled_builder, "_CIFAR100", f"{host}/cifar.tar.gz")
        download.main(["cifar100", "--data-dir", os.fspath(data_dir)])
    return data_dir


@pytest.fixture(autouse=True)
def cache_dir(tmp_path, monkeypatch):
    """An empty cache; also lets three photographs of each class do."""
    monkeypatch.setenv("XDG_CACHE_HOME", os.fspath(tmp_path / "cache"))
    monkeypatch.setattr(_cifar_fs, "_EXAMPLES", 3)
    return tmp_path / "cache" / "jaxmeta"


@pytest.mark.parametrize("load", LOADERS)
def test_all_photographs_come_back_under_their_names(load, made_dir):
    photographs = np.concatenate([_photographs(split) for split in EACH], 1)
    splits = load(made_dir)
    for part in splits:
        assert list(part.names) == sorted(part.names)
        assert (part.num_examples == 3).all()
        assert part.images.shape == (len(part.names), 3, 32, 32, 3)
        for name, images in zip(part.names, part.images, strict=True):
            superclass, fine = name.split("/")
            assert superclass == SUPERCLASS[fine]
            expected = photographs[FINE.index(fine)]
            assert sorted(x.tobytes() for x in images) == sorted(
                x.tobytes() for x in expected
            )
    assert len({name for part in splits for name in part.names}) == 100


def test_the_splits_have_the_papers_sizes(made_dir):
    sizes = lambda splits: [len(part.names) for part in splits]
    assert sizes(jm.tasks.load_cifar_fs(made_dir)) == [64, 16, 20]
    fc100 = jm.tasks.load_fc100(made_dir)
    assert sizes(fc100) == [60, 20, 20]
    superclasses = [{name.split("/")[0] for name in part.names} for part in fc100]
    assert list(map(len, superclasses)) == [12, 4, 4]
    assert set().union(*superclasses) == set(COARSE)


def test_tasks_can_be_drawn_within_a_superclass(made_dir, key):
    train = jm.tasks.load_fc100(made_dir).train
    options = {"ways": 5, "shots": 1, "queries": 1, "within_groups": True}
    task = jm.tasks.few_shot(train, **options)(key)
    pixels = np.rint(255 * np.asarray(task.support.inputs)).astype(np.uint8)
    found = {
        name.split("/")[0]
        for image in pixels
        for name, images in zip(train.names, train.images, strict=True)
        if (images == image).all((1, 2, 3)).any()
    }
    assert len(found) == 1


def test_a_second_load_decodes_nothing(made_dir, cache_dir, monkeypatch):
    jm.tasks.load_cifar_fs(made_dir)
    assert len(list(cache_dir.iterdir())) == 1
    monkeypatch.setattr(_cifar_fs, "_read_records", None)
    assert len(jm.tasks.load_fc100(made_dir).train.names) == 60


def test_what_is_prepared_here_is_read_by_stock_tfds(made_dir):
    import tensorflow_datasets as tfds

    source = tfds.data_source(
        "cifar100", split=["train", "test"], data_dir=made_dir, download=False
    )
    assert [len(split) for split in source] == [200, 100]
    features = source[0].dataset_info.features
    assert features["label"].names == FINE
    assert features["coarse_label"].names == COARSE
    images = {"train": _photographs("train"), "test": _photographs("test")}
    for split, records in zip(images, source, strict=True):
        record = records[0]
        name, index = record["id"].decode(), record["label"]
        copy = int(name.split("_")[1]) // 100
        assert name == f"{split}_{100 * copy + index:05d}"
        np.testing.assert_array_equal(record["image"], images[split][index, copy])


def test_another_data_set_is_an_error_that_says_so(made_dir, cache_dir, monkeypatch):
    monkeypatch.setattr(_cifar_fs, "_EXAMPLES", 600)
    message = (
        r"does not hold all of CIFAR-100 .*100 classes with \[3\] images each\)\. "
        r"Remove that folder and run `python -m jaxmeta.tasks.download cifar100 "
    )
    with pytest.raises(ValueError, match=message):
        jm.tasks.load_cifar_fs(made_dir)
    assert not cache_dir.exists()


def test_with_nothing_prepared_and_no_network(tmp_path, monkeypatch):
    pytest.importorskip("tensorflow_datasets")
    monkeypatch.setattr(_labelled_builder, "_CIFAR100", "http://127.0.0.1:1/a.tar.gz")
    for load in LOADERS:
        with pytest.raises(FileNotFoundError, match="download cifar100 --data-dir"):
            load(tmp_path)


@pytest.mark.skipif(not SPLITS.is_dir(), reason="no published lists beside")
def test_the_lists_are_the_published_ones():
    parts = ("train", "val", "test")
    torchmeta = SPLITS / "torchmeta" / "cifar100"
    for part, fs, fc100 in zip(parts, _cifar_fs.CIFAR_FS, _cifar_fs.FC100, strict=True):
        pairs = json.loads((torchmeta / "cifar-fs" / f"{part}.json").read_text())
        assert fs.split() == sorted(fine for _, fine in pairs)
        listed = (SPLITS / "cifar_fs_arnoutdevos" / f"{part}.txt").read_text().split()
        assert fs.split() == sorted(listed)
        superclasses = json.loads((torchmeta / "fc100" / f"{part}.json").read_text())
        assert fc100.split() == sorted(superclasses)


def test_the_lists_have_every_class_once():
    assert len(FINE) == len(set(FINE)) == 100
    assert len(COARSE) == len(set(COARSE)) == 20
