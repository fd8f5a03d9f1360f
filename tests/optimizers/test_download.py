"""The command that downloads published weights."""

import sys
import types

import pytest

from jaxmeta.optimizers import download


def _hub(monkeypatch, fetch):
    hub = types.ModuleType("huggingface_hub")
    monkeypatch.setattr(hub, "hf_hub_download", fetch, raising=False)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)


@pytest.mark.parametrize("name", download.PUBLISHED)
def test_it_prints_the_path_and_what_reads_it(name, monkeypatch, capsys):
    seen = []

    def fetch(repository, file, *, local_dir):
        seen.append((repository, file, local_dir))
        return f"{local_dir}/{file}"

    _hub(monkeypatch, fetch)
    download.main([name, "--out", "weights"])
    assert seen == [(download.PUBLISHED[name][0], "theta.state", "weights")]
    path, call = capsys.readouterr().out.splitlines()
    assert path == "weights/theta.state"
    assert "'weights/theta.state'" in call
    loader = call.partition("(")[0].rpartition(".")[2]
    assert hasattr(sys.modules["jaxmeta"].optimizers, loader)


def test_without_network_or_library_it_says_what_to_do(monkeypatch):
    def fetch(*args, **kwargs):
        raise OSError("no route to host")

    _hub(monkeypatch, fetch)
    with pytest.raises(SystemExit, match=r"Cannot download .*no route to host"):
        download.main(["celo"])
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(SystemExit, match="pip install huggingface_hub, or download"):
        download.main(["velo"])
