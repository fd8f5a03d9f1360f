"""A meta-step compiled for four TPU chips that are not there."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def test_a_meta_step_compiles_for_tpus(tmp_path):
    # A process of its own: JAX here has been started for the CPU's devices.
    pytest.importorskip("libtpu", reason="pip install 'jaxmeta[tpu]' compiles for TPUs")
    out = tmp_path / "tpu.json"
    command = [sys.executable, "-m", "benchmarks.tpu_compile", "--quick"]
    names = ["maml, 1 step", "optimizers.lstm"]
    found = subprocess.run(
        [*command, "--only", *names, "--out", str(out)],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    rows = {row["case"]: row for row in json.loads(out.read_text())["rows"]}
    assert set(names) <= set(rows)
    for row in rows.values():
        assert row["chips"] == 4 and row["collectives"] >= 1
    # The meta-gradient is summed, and nothing else: 1,909 float32 parameters.
    assert rows["maml, 1 step"]["collective_bytes"] == 4 * 1909
