"""The study's own public files, and a model that knows some of them; skipped where they are not present."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mechmem.data.counts import cluster
from mechmem.study.paper.items import ITEMS
from mechmem.study.paper.model_check import compared
from mechmem.study.paper.paper_folder import PaperFolder
from mechmem.study.paper.paper_sets import PaperSets
from mechmem.study.paper.published_files import read_published_files
from tests.study.paper.conftest import SMALL

SHARED = Path(__file__).parents[4] / "shared/data"
FILES, SPECIMEN = SHARED / "pile-gpt-neo-125m", SHARED / "pile-specimen"


@pytest.mark.skipif(not FILES.is_dir(), reason="the study's public files are not in ../shared/data")
def test_the_study_s_files_are_what_it_says():
    files = read_published_files(FILES)
    assert len(files.memorized) == 442 and (files.memorized.column("published_em") == 50).all()
    assert {name: len(rows) for name, rows in files.own_text.items()} == {"30-49": 141, "11-29": 436}
    assert files.pairs is not None and len(files.pairs[0]) == 90
    assert len(np.unique(cluster(files.memorized, run=25))) == 76
    # A memorized paragraph whose row is also in a group of lower EM.
    assert (files.own_text["30-49"].tokens[35] == files.memorized.tokens[405]).all()


@pytest.mark.skipif(not SPECIMEN.is_dir() or not FILES.is_dir(), reason="no such model and files in ../shared/data")
def test_another_model_is_told_from_the_study_s_and_its_items_go_on(tmp_path):
    """Of the 442 rows the model says 121 exactly: every eighth row here."""
    settings = replace(SMALL, model=str(SPECIMEN), corpus=str(FILES))
    memorized = read_published_files(FILES).memorized
    chosen = memorized.select(np.arange(0, 442, 8))
    np.save(tmp_path / "em50.npy", chosen.tokens.numpy())
    paper = PaperFolder(tmp_path / "p", replace(settings, corpus=str(tmp_path)))
    sets: PaperSets = paper.sets
    assert not sets.check.applies and "n_layers 6 instead of 12" in sets.check.sentences[0]
    assert f"reproduces {len(sets.memorized)} of the study's 56" in " ".join(sets.check.sentences)
    assert 8 < len(sets.memorized) < 25 and len(sets.other) > 10
    # GPT-2's tokenizer is known: nothing is said about it.
    assert not any("tokenizer" in sentence for sentence in sets.check.sentences)
    assert compared(paper.model.cfg, paper.model.tokenizer, memorized, None).sentences[0].startswith("the model has")
    finding = ITEMS["activation_gradients"](paper)
    assert {row.reading for row in finding.rows} == {"as published", "corrected"}
