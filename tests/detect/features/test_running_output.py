"""Statistics of the output against plain loops over the whole history."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from mechmem.data.errors import InputError
from mechmem.detect.features.logit_readings import LogitReader
from mechmem.detect.features.running_output import OUTPUT_STATISTICS, RunningOutput

VOCABULARY, ROWS, STEPS = 37, 5, 45


def log_probabilities(logits: Sequence[float]) -> list[float]:
    total = math.log(sum(math.exp(x - max(logits)) for x in logits)) + max(logits)
    return [x - total for x in logits]


def oracle(history: Sequence[Sequence[float]], said: Sequence[int], window: int) -> dict[str, float]:
    """The statistics of one row after its last logits, from all of them and all its tokens."""
    now = sorted(log_probabilities(history[-1]), reverse=True)
    found = {"top_logprob": now[0], "margin": now[0] - now[1], "entropy": -sum(math.exp(x) * x for x in now)}
    tokens = []
    for logits, token in zip(history, said, strict=False):
        logs = log_probabilities(logits)
        entropy = -sum(math.exp(x) * x for x in logs)
        spread = math.sqrt(sum(math.exp(x) * (x + entropy) ** 2 for x in logs))
        best = sorted(logs, reverse=True)
        tokens.append(
            (-logs[token], entropy, best[0] - best[1], logs[token] == best[0], (logs[token] + entropy) / spread)
        )
    nll, entropy, margin, first, z = zip(*tokens[-window:], strict=True) if tokens else ([0.0],) * 5
    recent = said[-window:]
    return found | {
        "mean_nll": float(np.mean(nll)),
        "max_nll": max(nll),
        "mean_entropy": float(np.mean(entropy)),
        "mean_margin": float(np.mean(margin)),
        "min_margin": min(margin),
        "first_choice": float(np.mean(first)),
        "mean_z": float(np.mean(z)),
        "distinct": len(set(recent)) / len(recent) if recent else 0.0,
    }


@pytest.fixture(scope="module")
def history() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [step, row, d_vocab] far from zero, and tokens [step, row], about half of them the first choice."""
    random = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(STEPS, ROWS, VOCABULARY, generator=random) - 40
    said = torch.randint(0, 6, (STEPS, ROWS), generator=random)
    first = torch.rand(STEPS, ROWS, generator=random) < 0.5
    return logits, torch.where(first, logits.argmax(-1), said)


@pytest.mark.parametrize("window", [32, 7])
def test_every_step_is_what_plain_loops_say(history, window):
    logits, said = history
    output = RunningOutput(ROWS, window=window)
    for step in range(STEPS):
        found = output.step(logits[step], None if step == 0 else said[step - 1])
        assert found.dtype == torch.float32 and found.shape == (ROWS, len(OUTPUT_STATISTICS))
        for row in range(ROWS):
            wanted = oracle(logits[: step + 1, row].tolist(), said[:step, row].tolist(), window)
            assert dict(zip(output.names, found[row].tolist(), strict=True)) == pytest.approx(
                wanted, rel=1e-4, abs=1e-5
            )
    output.hear(said[-1])
    logs = logits[-1].log_softmax(-1).gather(1, said[-1][:, None])[:, 0]
    np.testing.assert_allclose(output.said_nll, -logs, rtol=1e-5)


def test_rows_taken_by_index_go_on_as_if_they_had_been_decoded_in_that_order(history):
    logits, said = history
    for taken_at in (1, 20, 40):
        rows = torch.tensor([3, 0, 3, 4])
        moved, alone = RunningOutput(ROWS), RunningOutput(len(rows))
        for step in range(STEPS):
            before = None if step == 0 else said[step - 1]
            chosen = None if before is None else before[rows]
            wanted = alone.step(logits[step][rows], chosen)
            if step == taken_at:
                # A beam search chooses rows after the logits and before the tokens are told.
                moved.select(rows)
            found = moved.step(logits[step], before) if step < taken_at else moved.step(logits[step][rows], chosen)
            torch.testing.assert_close(found if step >= taken_at else found[rows], wanted)


def test_rows_moved_twice_before_the_next_logits(history):
    logits, said = history
    output, alone = RunningOutput(ROWS), RunningOutput(2)
    first, second = [4, 1, 0], torch.tensor([2, 1])
    output.step(logits[0], None)
    output.select(first)
    output.select(second)
    rows = torch.tensor([0, 1])
    alone.step(logits[0][rows], None)
    wanted = alone.step(logits[1][rows], said[0][rows])
    torch.testing.assert_close(output.step(logits[1][rows], said[0][rows]), wanted)


def test_the_memory_does_not_grow_with_the_text(history):
    logits, said = history
    output = RunningOutput(ROWS)

    def size() -> int:
        arrays = [x for x in vars(output).values() if isinstance(x, np.ndarray)]
        tensors = [x for x in vars(output).values() if isinstance(x, torch.Tensor)]
        return sum(x.nbytes for x in arrays) + sum(x.nbytes for x in tensors)

    output.step(logits[0], None)
    before = size()
    for step in range(1, STEPS):
        output.step(logits[step], said[step - 1])
    assert size() == before and all(len(tokens) <= output.window for tokens in output._tokens)


def test_the_callers_logits_stay_as_they_are_and_may_be_changed_afterwards(history):
    logits, said = history
    given = logits[0].clone()
    output, other = RunningOutput(ROWS), RunningOutput(ROWS)
    output.step(given, None)
    other.step(logits[0], None)
    assert torch.equal(given, logits[0])
    given.fill_(-torch.inf)
    torch.testing.assert_close(output.step(logits[1], said[0]), other.step(logits[1], said[0]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_refused(history, bad):
    logits = history[0][0].clone()
    logits[2, 5] = bad
    with pytest.raises(InputError, match="logits have NaN or infinite values; need finite ones"):
        RunningOutput(ROWS).step(logits, None)


def test_a_token_before_any_logits_is_refused():
    with pytest.raises(InputError, match="got a token before any logits"):
        RunningOutput(1).hear(torch.tensor([3]))


def test_certain_distributions_stay_finite():
    logits = torch.full((2, VOCABULARY), -30_000.0)
    logits[:, 4] = 50.0
    logits[1, 7] = 50.0
    output = RunningOutput(2)
    found = dict(zip(output.names, output.step(logits, None).T.tolist(), strict=True))
    assert found["entropy"] == pytest.approx([0, math.log(2)]) and found["margin"] == [30_050.0, 0.0]
    assert output.step(logits, torch.tensor([4, 7])).isfinite().all()


@pytest.mark.parametrize(("rows", "vocabulary"), [(1, 50257), (3, 50257), (33, 4096)])
def test_blocks_of_rows_and_large_vocabularies(rows, vocabulary):
    logits = 2 * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(1)) - 100
    readings = LogitReader().read(logits)
    logs = logits.double().log_softmax(-1)
    entropy = -(logs.exp() * logs).sum(-1)
    best = logs.topk(2).values
    spread = (logs.exp() * (logs + entropy[:, None]).square()).sum(-1).sqrt()
    wanted = torch.stack([best[:, 0], best[:, 0] - best[:, 1], entropy, spread], 1)
    torch.testing.assert_close(torch.from_numpy(readings.T).double(), wanted, rtol=1e-4, atol=1e-4)


def test_sixteen_bit_logits_are_read_in_float32(history):
    logits, said = history
    half = logits.half()
    output, wide = RunningOutput(ROWS), RunningOutput(ROWS)
    for step in range(3):
        before = None if step == 0 else said[step - 1]
        torch.testing.assert_close(output.step(half[step], before), wide.step(half[step].float(), before))


@pytest.mark.parametrize("rows", [1, 5])
def test_other_devices_read_what_a_cpu_reads(history, rows, monkeypatch):
    logits, said = history
    here, there = RunningOutput(rows), RunningOutput(rows)
    wanted = [here.step(logits[0, :rows], None), here.step(logits[1, :rows], said[0, :rows])]
    monkeypatch.setattr(LogitReader, "_here", lambda self, array: self._there(torch.from_numpy(array)))
    torch.testing.assert_close(there.step(logits[0, :rows], None), wanted[0])
    torch.testing.assert_close(there.step(logits[1, :rows], said[0, :rows]), wanted[1])
