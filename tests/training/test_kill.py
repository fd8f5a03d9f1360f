"""A run killed by the system resumes with identical results."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest

COMMAND = shlex.split(
    "train maml-sinusoid --steps 3000 --log-every 50 --validate-every 100 "
    "--num-tasks 2 --hidden 8 --validation-tasks 4 --test-tasks 4 --out"
)


def _start(out):
    argv = [sys.executable, "-m", "jaxmeta", *COMMAND, str(out)]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
    return subprocess.Popen(argv, stdout=subprocess.DEVNULL, env=environment)


def _records(out):
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [{**json.loads(line), "seconds": None} for line in lines]


@pytest.mark.slow
def test_a_killed_run_ends_like_one_that_was_not(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert _start(whole).wait() == 0
    for num_records in (3, 20):
        process = _start(parts)
        metrics = parts / "metrics.jsonl"
        while process.poll() is None:
            if metrics.exists() and len(metrics.read_text().splitlines()) > num_records:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.001)
        assert process.wait() == -signal.SIGKILL
    assert _start(parts).wait() == 0
    assert _records(parts) == _records(whole)
    summaries = [json.loads((x / "summary.json").read_text()) for x in (whole, parts)]
    assert summaries[0]["test"] == summaries[1]["test"]
