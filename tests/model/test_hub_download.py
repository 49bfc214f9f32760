"""`mechmem check EleutherAI/gpt-neo-125m` against a hub on loopback, as a user runs it: a process, its own cache."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.model.conftest import random_reference, small_tokenizer
from tests.model.served_hub import Hub

NAME = "EleutherAI/gpt-neo-125m"


@pytest.fixture
def served(tmp_path) -> Iterator[Callable[..., Hub]]:
    """(largest part) -> a hub with a small GPT-Neo under the published name, GPT-2's tokenizer files, and pickles."""
    hubs: list[Hub] = []
    opened = tmp_path / "opened"

    def serve(shard: str = "5GB") -> Hub:
        folder = tmp_path / "source"
        if not folder.exists():
            reference = random_reference("gpt_neo", vocab_size=283, max_position_embeddings=400)
            reference.save_pretrained(folder, max_shard_size=shard)
            small_tokenizer(283).save_model(str(folder))
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        assert {"vocab.json", "merges.txt", "config.json"} <= set(files) and "tokenizer.json" not in files
        # Whoever opens it runs it: it makes a file.
        pickle = f"cposix\nsystem\n(S'touch {opened}'\ntR.".encode()
        hubs.append(Hub({**files, "pytorch_model.bin": pickle, "README.md": b"# A model"}, NAME))
        return hubs[-1]

    yield serve
    for hub in hubs:
        hub.stop()
        assert "pytorch_model.bin" not in hub.sent
    assert not opened.exists() and not list((tmp_path / "home").rglob("*.bin"))


def check(hub: Hub, tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "here").mkdir(exist_ok=True)
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "HOME", "TMPDIR") if name in os.environ}
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1", "COLUMNS": "160"}
    # As in the suite itself: no other library may ask the network.
    return subprocess.run(
        [sys.executable, "-m", "mechmem.cli", "check", NAME, "--device", "cpu"],
        env={**kept, **settings, **environment},
        cwd=tmp_path / "here",
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def passed(answer: subprocess.CompletedProcess[str]) -> bool:
    return answer.returncode == 0 and f"{NAME}: largest differences" in answer.stdout and "NO" not in answer.stdout


@pytest.mark.parametrize("shard", ["5GB", "40KB"])
def test_a_model_is_fetched_into_an_empty_cache_and_read_from_it_offline(shard, served, tmp_path):
    hub = served(shard)
    parts = [name for name in hub.files if name.endswith(".safetensors")]
    assert (len(parts) > 2) == (shard == "40KB")
    answer = check(hub, tmp_path)
    assert passed(answer), answer.stderr
    assert set(hub.sent) == set(hub.files) - {"pytorch_model.bin", "README.md", "generation_config.json"}
    asked = hub.asked
    answer = check(hub, tmp_path, HF_HUB_OFFLINE="1")
    assert passed(answer) and hub.asked == asked, answer.stderr


def test_a_download_that_breaks_off_is_a_sentence_and_the_next_run_goes_on(served, tmp_path):
    hub = served("40KB")
    *first, last = sorted(name for name in hub.files if name.endswith(".safetensors"))
    hub.cut = last
    answer = check(hub, tmp_path)
    assert answer.returncode == 2 and "Traceback" not in answer.stderr
    (sentence,) = [line for line in answer.stderr.splitlines() if line.startswith("error: ")]
    assert f"'{NAME}' is not a folder" in sentence and "the hub cannot be reached" in sentence, sentence
    assert "connect to the network" in sentence
    assert set(first) < set(hub.sent)
    again = served()
    answer = check(again, tmp_path)
    assert passed(answer), answer.stderr
    assert set(again.sent) == {last}, "what was there is not fetched again"
