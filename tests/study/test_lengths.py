"""Whole studies of paragraphs that are not 50 + 50 tokens, of random models made to have memorized some."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import xarray as xr
from typer.testing import CliRunner

from mechmem.cli import app
from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.intervene.loop import Stop
from mechmem.study.folder import StudyFolder
from mechmem.study.runner import run_study
from mechmem.study.settings import StudySettings

TINY = StudySettings(
    decoded=4, gradient_sample=2, ablation_sample=2, pairs=1, targets=2, evaluated=4, steps=2, attack_prefixes=2,
    attack_samples=4, relearning_steps=1, edits=("npo all 1e-4",),
)  # fmt: skip
pytestmark = pytest.mark.filterwarnings("ignore:.*(has no tokenizer|unlearned nothing|removed nothing).*:UserWarning")


def written(folder: Path, family: str, context: int) -> Any:
    """A random model in a folder, wide enough in its weights to have greedy text of its own for each prefix."""
    size = {"vocab_size": 128, "bos_token_id": None, "eos_token_id": None, "initializer_range": 0.3}
    config = (
        transformers.GPTNeoXConfig(
            **size, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
            max_position_embeddings=context,
        )
        if family == "gpt_neox"
        else transformers.GPT2Config(**size, n_embd=32, n_layer=2, n_head=4, n_inner=64, n_positions=context)
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(folder)
    return model


def corpus(model: Any, prefix_len: int, continuation_len: int) -> np.ndarray:
    """Six paragraphs that the model continues itself, and twelve random ones."""
    ids = torch.randint(0, 128, (18, prefix_len + continuation_len), generator=torch.Generator().manual_seed(1))
    own = model.generate(
        ids[:6, :prefix_len],
        attention_mask=torch.ones(6, prefix_len, dtype=torch.long),
        max_new_tokens=continuation_len,
        do_sample=False,
        pad_token_id=0,
    )
    return torch.cat([own, ids[6:]]).numpy()


@pytest.mark.parametrize(
    ("family", "prefix_len", "continuation_len", "context"), [("gpt_neox", 32, 32, 64), ("gpt2", 450, 50, 512)]
)
def test_a_whole_study_at_other_lengths_says_them(family, prefix_len, continuation_len, context, tmp_path):
    rows = corpus(written(tmp_path / "model", family, context), prefix_len, continuation_len)
    np.save(tmp_path / "ids.npy", rows)
    settings = replace(TINY, model=str(tmp_path / "model"), corpus=str(tmp_path / "ids.npy"))
    settings = replace(settings, prefix_len=prefix_len, continuation_len=continuation_len)
    folder = tmp_path / "study"
    manifest = run_study(folder, settings)
    assert not manifest["skipped"], manifest["skipped"]
    scored = Paragraphs.load(folder / "paragraphs.parquet")
    em, few = scored.column("em"), continuation_len // 5
    assert (scored.prefix_len, scored.continuation_len) == (prefix_len, continuation_len)
    wanted = np.where(em == continuation_len, "memorized", np.where(em <= few, "other", "between"))
    assert (scored.column("set") == wanted).all() and (em == continuation_len).sum() == 6
    unlearned = xr.load_dataset(folder / "unlearn.nc", engine="h5netcdf")
    assert float(unlearned.em.sel(edit="original", set="targets")) == continuation_len
    edit = json.loads((folder / "edits/npo-all/settings.json").read_text())
    assert edit["target_em"] is None
    page = (folder / "report.html").read_text()
    assert f"Given the first {prefix_len} tokens" in page and f"word for word for {continuation_len} more" in page
    assert f"memorized (EM = {continuation_len})" in page and f"EM = {continuation_len} means no mistake" in page
    assert re.search(rf"other \(EM (≤|\\u2264) {few}\)", page)
    others = {"50", "100", "49", "99", "10"} - {str(n) for n in (prefix_len, continuation_len, few)}
    assert not re.findall(rf"\b(?:EM (?:= |≤ )?|first )(?:{'|'.join(others)})\b", page)
    assert not re.findall(rf"\b(?:{'|'.join(others - {'10'})}) tokens", page)


@pytest.mark.parametrize(("given", "goal"), [(None, 6.0), (10.0, 10.0)])
def test_an_edit_ends_at_a_fifth_of_the_continuation(given, goal, tmp_path, monkeypatch):
    """With 10 tokens for every length, an edit of 32 would end where a third of the text is left."""
    rows = corpus(written(tmp_path / "model", "gpt_neox", 64), 32, 32)
    np.save(tmp_path / "ids.npy", rows)
    settings = replace(TINY, model=str(tmp_path / "model"), corpus=str(tmp_path / "ids.npy"), prefix_len=32)

    def begun(*_: Any, stop: Stop, **__: Any) -> None:
        raise InputError(f"would end at {stop.target_em}")

    monkeypatch.setattr("mechmem.study.edit_making.unlearn", begun)
    with pytest.raises(InputError, match=f"would end at {goal}"):
        run_study(tmp_path / "study", replace(settings, target_em=given), until="unlearn")


@pytest.mark.parametrize(
    ("given", "own"),
    [
        ({}, (50, 30)),
        ({"prefix_len": 16}, (16, 64)),
        ({"continuation_len": 16}, (64, 16)),
        ({"prefix_len": 16, "continuation_len": 64}, (16, 64)),
    ],
)
def test_rows_of_ids_are_split_where_the_settings_say(given, own, tmp_path):
    written(tmp_path / "model", "gpt_neox", 80)
    np.save(tmp_path / "ids.npy", np.arange(3 * 80).reshape(3, 80) % 128)
    settings = replace(TINY, model=str(tmp_path / "model"), corpus=str(tmp_path / "ids.npy"), **given)
    paragraphs = StudyFolder(tmp_path / "study", settings).unscored
    assert (paragraphs.prefix_len, paragraphs.continuation_len) == own


def test_lengths_that_the_paragraphs_have_not_are_refused_before_anything_is_written(tmp_path):
    saved = tmp_path / "rows.parquet"
    Paragraphs(torch.randint(1, 4096, (4, 64)), 32).save(saved)
    np.save(tmp_path / "ids.npy", np.ones((3, 64), dtype=np.int32))
    for options, sentence in (
        (["--prefix-len", "32"], "the bundled paragraphs: got paragraphs of prefix_len 50 and .* need 32 and 50"),
        (["--corpus", str(saved), "--prefix-len", "40"], "of prefix_len 32 and continuation_len 32; need 40 and 32"),
        (["--corpus", str(saved), "--continuation-len", "50"], "need 32 and 50, as asked for: leave these out"),
        (["--corpus", str(tmp_path / "ids.npy"), "--prefix-len", "32", "--continuation-len", "30"], "need 32 and 30"),
        (["--corpus", str(saved), "--prefix-len", "0"], "got 0 as --prefix-len; need a whole number of at least 1"),
    ):
        for command in (["run", "--out", str(tmp_path / "study")], ["scan", "--out", str(tmp_path / "out.parquet")]):
            if "ids.npy" in str(options) and command[0] == "scan":
                continue  # a scan cuts rows of ids into windows
            answer = CliRunner().invoke(app, [*command, "--model", "bundled", *options])
            assert answer.exit_code == 2 and re.search(sentence, answer.output), answer.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ids.npy", "rows.parquet"]


def test_a_study_does_not_go_on_at_other_lengths(tmp_path):
    Paragraphs(torch.randint(1, 4096, (4, 64)), 32).save(tmp_path / "rows.parquet")
    settings = StudySettings(corpus=str(tmp_path / "rows.parquet"))
    run_study(tmp_path / "study", settings, until="scan")
    with pytest.raises(InputError, match="prefix_len was None, now 40"):
        run_study(tmp_path / "study", replace(settings, prefix_len=40), until="scan")
