"""One re-entrant lock a model, so that threads that share a model take turns.

Hooks, `requires_grad` and weights belong to the model object, so one thread's temporary change would act in another
thread's forward. Every public function, and every context that hooks, freezes or edits a model in place, holds the
model's lock while it works.

Locks live in a registry and not on the model: a copy of a model has a lock of its own, and a model can be pickled.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

from torch.nn import Module

from mechmem.data.errors import InputError


class _Lock:
    """Who holds a model, and how many blocks deep."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.owner: int | None = None
        self.depth = 0


_ranks = count()
_locks: weakref.WeakKeyDictionary[Module, _Lock] = weakref.WeakKeyDictionary()
# Guards the registry and every _Lock. It is held for microseconds; waiting for a model gives it up.
_state = threading.Condition()
# Which lock a thread waits for: a circle of these would never end, so it is refused.
_waiting: dict[int, _Lock] = {}


@contextmanager
def holding(*models: Module) -> Iterator[None]:
    """Hold the locks of some models in the block; the same thread may hold them again inside it.

    Several models are taken in the order in which they were first seen, whatever the order of the arguments, so that
    two threads with the same two models cannot wait for each other.

    Raises:
        InputError: a model is held by a thread that waits for a model that this thread holds: neither could go on.
    """
    me = threading.get_ident()
    taken: list[_Lock] = []
    try:
        with _state:
            for lock in _of(models):
                _take(lock, me)
                taken.append(lock)
        yield
    finally:
        if taken:
            with _state:
                for lock in taken:
                    _give(lock)


def _of(models: tuple[Module, ...]) -> list[_Lock]:
    for model in models:
        if model not in _locks:
            _locks[model] = _Lock(next(_ranks))
    return sorted({_locks[model] for model in models}, key=lambda lock: lock.rank)


def _take(lock: _Lock, me: int) -> None:
    try:
        while lock.owner not in (None, me):
            _waiting[me] = lock
            if _in_a_circle(lock, me):
                raise InputError(
                    "two threads each hold a model that the other one waits for, so neither could go on; need both "
                    "models taken together: call one function with both, or use the models in one thread"
                )
            _state.wait()
    finally:
        _waiting.pop(me, None)
    lock.owner = me
    lock.depth += 1


def _give(lock: _Lock) -> None:
    lock.depth -= 1
    if lock.depth == 0:
        lock.owner = None
        _state.notify_all()


def _in_a_circle(lock: _Lock, me: int) -> bool:
    """Whether the thread that holds the lock waits, through others or directly, for this thread."""
    owner = lock.owner
    while owner is not None and owner in _waiting:
        owner = _waiting[owner].owner
        if owner == me:
            return True
    return False


def _forget() -> None:
    """In a forked child only the forking thread lives on: what other threads held is free."""
    global _state
    _state = threading.Condition()
    _locks.clear()
    _waiting.clear()


os.register_at_fork(after_in_child=_forget)
