"""Scaling curves equal what each model gives by itself, and the laws are least squares with intervals by cluster."""

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import mechmem as mm
from mechmem.data.assets import MODEL_FOLDER
from mechmem.data.errors import InputError
from mechmem.measure.scaling_curves import count_ranges, slope_terms


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The bundled model, and one whose weights were pushed about."""
    folder = tmp_path_factory.mktemp("suite") / "noisy"
    folder.mkdir()
    for path in MODEL_FOLDER.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    noise = torch.Generator().manual_seed(0)
    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if "mlp.c_proj.weight" in name:
            weights[name] = (weight.float() + 0.05 * torch.randn(weight.shape, generator=noise)).half()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return ["bundled", str(folder)]


@pytest.fixture(scope="module")
def some(bundled):
    order = np.random.default_rng(2).permutation(len(bundled))[:60]
    return bundled.select(order)


@pytest.fixture(scope="module")
def result(folders, some):
    return mm.scaling(folders, some, prefix_lens=(50, 20), device="cpu")


def test_a_suite_is_scored_as_each_model_by_itself(folders, some, result):
    assert result.model.values.tolist() == folders and result.prefix_len.values.tolist() == [20, 50]
    for name in folders:
        model = mm.load_model(name, device="cpu")
        for length in (20, 50):
            shorter = mm.Paragraphs(some.tokens[:, 50 - length :], prefix_len=length)
            own, here = mm.score(model, shorter), result.sel(model=name, prefix_len=length)
            assert here.paragraph.values.tolist() == some.ids.tolist()
            np.testing.assert_array_equal(here.em, own.em)
            np.testing.assert_array_equal(here.nll, own.nll)
            with torch.no_grad():
                log_probs = model(shorter.tokens[:8]).double().log_softmax(-1)[:, length - 1 : -1]
            said = log_probs.gather(2, shorter.continuation[:8, :, None]).sum((1, 2)).exp()
            np.testing.assert_allclose(here.p_extractable[:8], said, rtol=1e-3, atol=1e-12)
        assert int(result.n_weights.sel(model=name)) == 6 * 12 * 256**2
    assert (result.em.sel(model="bundled") != result.em.sel(model=folders[1])).any()


def test_curves_are_means_by_range_of_counts_with_intervals_by_cluster(some, result):
    counts, here = some.column("count"), result.sel(model="bundled", prefix_len=50)
    assert int(result.n_paragraphs.sum()) == len(some)
    for low in result.count_range.values:
        inside = (counts >= low) & (counts < 2 * low) if low else counts == 0
        cell = here.sel(count_range=low)
        assert int(cell.n_paragraphs) == inside.sum() > 0
        assert int(cell.n_clusters) == len(set(some.clusters[inside].tolist()))
        assert float(cell.share_extractable) == pytest.approx((here.em.values[inside] == 50).mean())
        assert float(cell.mean_nll) == pytest.approx(here.nll.values[inside].mean(), rel=1e-5)
        share = mm.cluster_bootstrap(here.em.values[inside] == 50, some.clusters[inside])
        assert (float(cell.share_extractable_low), float(cell.share_extractable_high)) == pytest.approx(share, abs=1e-6)
        low_end, high_end = mm.cluster_bootstrap(here.nll.values[inside], some.clusters[inside], within=(0, None))
        assert float(cell.mean_nll_low) == pytest.approx(low_end, rel=0.02)
        assert float(cell.mean_nll_high) == pytest.approx(high_end, rel=0.02)


def test_the_laws_are_least_squares(some, result):
    counts, trained = some.column("count"), some.column("count") > 0
    extractable = (result.em.values == 50).astype(float)
    fitted = np.polyfit(np.log2(counts[trained]), extractable[0, 1][trained], 1)[0]
    one = result.sel(model="bundled", prefix_len=50)
    assert float(one.per_count_doubling) == pytest.approx(fitted)
    assert float(one.per_count_doubling_low) < fitted < float(one.per_count_doubling_high)
    assert float(one.per_count_doubling_low) > 0, "the bundled model says more of what it read more often"
    lengths = np.log2([20, 50])
    assert float(result.per_prefix_doubling[0]) == pytest.approx(
        np.polyfit(lengths, extractable[0].mean(1), 1)[0], abs=1e-12
    )
    # Two models of one size say nothing about sizes.
    assert np.isnan(result.per_size_doubling).all() and np.isnan(result.per_size_doubling_low).all()


def test_the_terms_of_a_slope_vary_as_the_slope_does():
    rng, slopes, widths = np.random.default_rng(1), [], []
    for _ in range(200):
        x = rng.integers(0, 8, 120).astype(float)
        y = 0.3 * x + rng.normal(size=120)
        terms = slope_terms(x, y[:, None])[:, 0]
        assert terms.mean() == pytest.approx(np.polyfit(x, y, 1)[0])
        slopes.append(terms.mean())
        widths.append(terms.std() / 120**0.5)
    assert np.std(slopes) == pytest.approx(np.mean(widths), rel=0.15)
    assert np.isnan(slope_terms(np.ones(5), np.ones((5, 2)))).all()
    assert count_ranges(np.array([0, 1, 2, 3, 4, 255, 256])).tolist() == [0, 1, 2, 2, 4, 128, 256]


def test_what_cannot_be_compared_is_refused_before_a_model_is_loaded(some, tmp_path, monkeypatch):
    monkeypatch.setattr("mechmem.measure.scaling.load_model", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(InputError, match=r"got 2 models, 1 of them different"):
        mm.scaling(["bundled", "bundled"], some)
    with pytest.raises(InputError, match="got 'bundled' as models; need several"):
        mm.scaling("bundled", some)
    with pytest.raises(InputError, match="without a column 'count'"):
        mm.scaling(["bundled"], mm.Paragraphs(some.tokens))
    with pytest.raises(InputError, match=r"got prefix lengths \[60\] for paragraphs with a prefix of 50 tokens"):
        mm.scaling(["bundled"], some, prefix_lens=[60])
    other = tmp_path / "other"
    other.mkdir()
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(MODEL_FOLDER)
    sample = (str(text) for text in some.column("text"))
    tokenizer.train_new_from_iterator(sample, 300).save_pretrained(other)
    (other / "config.json").write_text("{}")
    (other / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"other has another tokenizer \(300 tokens\) than the paragraphs \(4,096\)"):
        mm.scaling(["bundled", str(other)], some)
