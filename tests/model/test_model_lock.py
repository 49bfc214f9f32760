"""Threads that share a model take turns; each finds it as if it were alone."""

import copy
import gc
import os
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch

from mechmem.data.errors import InputError
from mechmem.localize.ablation import ablate_heads
from mechmem.localize.gradients import parameter_gradients, weight_gradients
from mechmem.localize.scoreboard import without_neurons
from mechmem.measure.scores import kl, score
from mechmem.model import model_lock
from mechmem.model.attention_scores import wide_scores
from mechmem.model.hooks import frozen, hooked_points, recording, with_hooks
from mechmem.model.lean import model as lean_model
from mechmem.model.lean.model import LeanModel, fast_float32
from mechmem.model.load import empty_model
from mechmem.model.model_lock import holding
from mechmem.weights.sparse_edit import Edit

PATIENCE = 60


@pytest.fixture
def model(tiny_model):
    return copy.deepcopy(tiny_model)


def in_threads(*jobs: Callable[[], object]) -> list[object]:
    """Run jobs at the same time; raise what one raised, or fail if one does not end."""
    results: dict[int, object] = {}
    errors: list[BaseException] = []
    start = threading.Barrier(len(jobs))

    def run(number: int, job: Callable[[], object]) -> None:
        start.wait()
        try:
            results[number] = job()
        except BaseException as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    threads = [threading.Thread(target=run, args=item, daemon=True) for item in enumerate(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive(), "a thread is stuck"
    if errors:
        raise errors[0]
    return [results[number] for number in range(len(jobs))]


def again(times: int, job: Callable[[], object]) -> Callable[[], list[object]]:
    return lambda: [job() for _ in range(times)]


@pytest.fixture
def slow_model(model):
    """A model that its own hook makes slow, so that threads meet inside a forward; its ablation hooks it as well."""
    model.add_perma_hook("hook_embed", lambda x, hook: time.sleep(0.001))  # noqa: ARG005
    return model


def test_a_score_beside_an_ablation_is_the_score_alone(slow_model, tiny_paragraphs):
    rows = tiny_paragraphs[:2]
    alone = score(slow_model, rows).nll
    ablated = ablate_heads(slow_model, rows)
    scores, ablations = in_threads(
        again(25, lambda: score(slow_model, rows).nll), again(2, lambda: ablate_heads(slow_model, rows))
    )
    assert isinstance(scores, list) and isinstance(ablations, list)
    assert all(found.equals(alone) for found in scores)
    assert all(found.equals(ablated) for found in ablations)
    assert hooked_points(slow_model) == ["hook_embed"]


def test_gradients_in_three_threads_leave_the_model_as_it_was(model, tiny_paragraphs):
    for number, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(number % 3 == 0)
    before = [(p.requires_grad, p.grad, p.detach().clone()) for p in model.parameters()]
    jobs = [
        again(3, lambda: weight_gradients(model, tiny_paragraphs)["blocks.1.mlp.W_in"]),
        again(3, lambda: parameter_gradients(model, tiny_paragraphs).values),
        again(3, lambda: weight_gradients(model, tiny_paragraphs)["blocks.1.mlp.W_in"]),
    ]
    found = in_threads(*jobs)
    for parameter, (required, gradient, values) in zip(model.parameters(), before, strict=True):
        assert parameter.requires_grad == required and parameter.grad is gradient and torch.equal(parameter, values)
    assert all(torch.equal(grads, found[0][0]) for job in (found[0], found[2]) for grads in job)  # pyright: ignore


def test_two_models_in_opposite_order_do_not_block(model, tiny_paragraphs):
    other = copy.deepcopy(model)
    rows = tiny_paragraphs[:2]
    in_threads(
        again(40, lambda: kl(original=model, edited=other, paragraphs=rows)),
        again(40, lambda: kl(original=other, edited=model, paragraphs=rows)),
    )


def held_elsewhere(model) -> bool:
    """Whether another thread has to wait for the model."""
    free = threading.Event()

    def take() -> None:
        with holding(model):
            free.set()

    threading.Thread(target=take, daemon=True).start()
    return not free.wait(0.05)


@contextmanager
def one_edit_applied(model) -> Iterator[None]:
    edited = copy.deepcopy(model)
    edited.blocks[0].mlp.W_in.data[0, 0] += 1
    with Edit.between(model, edited).applied(model):
        yield


CONTEXTS = {
    "with_hooks": lambda model: with_hooks(model, {"hook_embed": lambda x, hook: x}),  # noqa: ARG005
    "recording": lambda model: recording(model, ["hook_embed"]),
    "frozen": frozen,
    "wide_scores": wide_scores,
    "without_neurons": lambda model: without_neurons(model, [(1, 2)]),
    "Edit.applied": one_edit_applied,
}


@pytest.mark.parametrize("name", CONTEXTS)
def test_what_changes_a_model_for_a_while_holds_it(name, model):
    assert not held_elsewhere(model)
    with CONTEXTS[name](model):
        assert held_elsewhere(model)
        with holding(model), CONTEXTS[name](model):
            pass
        assert held_elsewhere(model), "an inner block freed the model"
    assert not held_elsewhere(model)
    with pytest.raises(ZeroDivisionError), CONTEXTS[name](model):
        raise ZeroDivisionError
    assert not held_elsewhere(model)


def test_hooks_of_another_thread_are_waited_for_and_not_refused(model):
    hooked, waited = threading.Event(), []

    def hook() -> None:
        with with_hooks(model, {"hook_embed": lambda x, hook: x * 0}):  # noqa: ARG005
            hooked.set()
            time.sleep(0.2)
            waited.append("hooks")

    def read() -> None:
        hooked.wait()
        LeanModel(model)
        waited.append("lean")

    in_threads(hook, read)
    assert waited == ["hooks", "lean"]


def test_a_callback_may_use_the_model(model, tiny_paragraphs):
    found = []
    callback = lambda done, total: found.append(score(model, tiny_paragraphs[:2]).nll)  # noqa: ARG005, E731
    in_threads(lambda: score(model, tiny_paragraphs, progress=callback))
    assert found


def test_a_circle_is_refused_instead_of_waiting_for_ever(model):
    other = copy.deepcopy(model)
    both = threading.Barrier(2)
    refused = []

    def take(first, second) -> None:
        with holding(first):
            both.wait()
            try:
                with holding(second):
                    pass
            except InputError as error:
                refused.append(str(error))

    in_threads(lambda: take(model, other), lambda: take(other, model))
    assert len(refused) == 1 and "two threads each hold a model that the other one waits for" in refused[0]
    assert not held_elsewhere(model) and not held_elsewhere(other)


def test_a_lock_goes_with_its_model_and_a_copy_has_its_own(model):
    with holding(model):
        assert not held_elsewhere(copy.deepcopy(model))
    gc.collect()  # models that other tests left in reference cycles are not counted
    known = len(model_lock._locks)
    gone = copy.deepcopy(model)
    with holding(gone):
        assert len(model_lock._locks) == known + 1
    alive = weakref.ref(gone)
    del gone
    gc.collect()
    assert alive() is None and len(model_lock._locks) == known


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_does_not_wait_for_threads_that_it_does_not_have(model):
    taken, done = threading.Event(), threading.Event()

    def keep() -> None:
        with holding(model):
            taken.set()
            done.wait(PATIENCE)

    threading.Thread(target=keep, daemon=True).start()
    taken.wait(PATIENCE)
    child = os.fork()
    if child == 0:
        with holding(model):
            os._exit(7)
    status = None
    for _ in range(200):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        time.sleep(0.05)
    else:
        os.kill(child, 9)
        os.waitpid(child, 0)
    done.set()
    assert status is not None and os.waitstatus_to_exitcode(status) == 7


def test_models_built_in_threads_leave_the_warning_filters_alone(small_model):
    cfg = copy.deepcopy(small_model().cfg)
    before = list(warnings.filters)
    in_threads(*[again(5, lambda: empty_model(copy.deepcopy(cfg))) for _ in range(3)])
    assert warnings.filters == before


@contextmanager
def nothing() -> Iterator[None]:
    yield


def seconds(context: Callable[[], AbstractContextManager[None]]) -> float:
    start = time.perf_counter()
    for _ in range(500):
        with context():
            pass
    return (time.perf_counter() - start) / 500


def test_holding_costs_no_more_than_some_empty_contexts(model):
    """3 microseconds where this was written; the ratio does not depend on the machine and its load."""
    pairs = [(seconds(lambda: holding(model)), seconds(nothing)) for _ in range(20)]
    assert min(pair[0] for pair in pairs) < 100 * min(pair[1] for pair in pairs)


@pytest.mark.skipif(not lean_model._medium_is_float32(), reason="this processor would use bfloat16")
def test_the_precision_of_products_is_restored_after_threads_that_overlap():
    before = torch.get_float32_matmul_precision()
    inside, leave = threading.Event(), threading.Event()
    cpu = torch.device("cpu")

    def first() -> None:
        with fast_float32(cpu):
            inside.set()
            leave.wait(PATIENCE)

    thread = threading.Thread(target=first, daemon=True)
    thread.start()
    inside.wait(PATIENCE)
    with fast_float32(cpu):
        leave.set()
        thread.join(PATIENCE)
        assert torch.get_float32_matmul_precision() == "medium"
    assert torch.get_float32_matmul_precision() == before
