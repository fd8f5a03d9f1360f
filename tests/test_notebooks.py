"""Notebooks run from top to bottom, with few steps; stored are those of a full run."""

import importlib.util
import os
import pathlib

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

ROOT = pathlib.Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data" / "tfds"
# What stands in for the cell of settings.
FAST = {
    "01_quickstart": "num_steps, num_tasks = 50, 8",
    "02_few_shot_images": "num_steps, filters, num_tasks = 20, 4, 8; "
    + (f"data_dir = {str(DATA)!r}" if DATA.exists() else "use_omniglot = False"),
    "03_inner_loops_are_optax_chains": "num_steps, num_tasks = 20, 8",
    "04_learned_optimizers": "num_meta_steps, num_problems = 20, 4; "
    "horizon_of_test = 50",
    "05_meta_gradients": "num_tasks, num_samples = 4, 4",
    "06_scaling": "filters, num_tasks, seconds = 4, 4, 0.1",
    "07_write_your_own_learner": "num_steps, filters, num_tasks = 20, 4, 8",
}
NOTEBOOKS = sorted(ROOT.glob("notebooks/*.ipynb"))


def test_every_notebook_has_a_fast_mode():
    assert [path.stem for path in NOTEBOOKS] == list(FAST)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_outputs_are_of_this_code(path):
    """If this fails: `python notebooks/run.py NAME`."""
    spec = importlib.util.spec_from_file_location("run", ROOT / "notebooks" / "run.py")
    run = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(run)
    notebook = nbformat.read(path, 4)
    assert notebook.metadata["jaxmeta"]["ran"] == run.digest(notebook)
    assert path.stat().st_size < 300_000


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    import nbclient

    flags = os.environ["XLA_FLAGS"].split()
    one_device = [x for x in flags if "device_count" not in x]  # As readers have.
    monkeypatch.setenv("XLA_FLAGS", " ".join(one_device))
    notebook = nbformat.read(path, 4)
    settings = [
        i
        for i, cell in enumerate(notebook.cells)
        if "parameters" in cell.metadata.get("tags", ())
    ]
    assert len(settings) == 1
    fast = nbformat.v4.new_code_cell(FAST[path.stem])
    notebook.cells.insert(settings[0] + 1, fast)
    client = nbclient.NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": os.fspath(tmp_path)}},
    )
    client.execute()
    pictures = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "image/png" in output.get("data", {})
    ]
    assert pictures or path.stem in ("06_scaling", "07_write_your_own_learner")
