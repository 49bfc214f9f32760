"""The rows of one generation: their features, scores, alarms, and what is done about them, step by step."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechmem.data.errors import InputError
from mechmem.detect.detector import Detector
from mechmem.detect.features.step_features import StepFeatures
from mechmem.detect.features.step_states import StepStates
from mechmem.detect.monitor.actions import Action
from mechmem.detect.monitor.history import History, Step
from mechmem.detect.monitor.source import Source
from mechmem.detect.monitor.steering import Steering


@dataclass(frozen=True)
class Prompt:
    """What the rows of a generation are given.

    Attributes:
        tokens: ids, padded at the left where rows differ in length.
        padding: positions of padding of each row; None: there are none.
        ends: tokens that end a row's text.
    """

    tokens: Int[Tensor, "row pos"]
    padding: Int[Tensor, " row"] | None = None
    ends: tuple[int, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What every generation of a monitor shares.

    Attributes:
        detector: on the model's device.
        threshold: of its statistic; an alarm is raised above it.
        act: makes the action of one generation.
        steering: what "steer" scales; None for other actions.
        stops: whether a row's text ends with its alarm.
        source: the model.
    """

    detector: Detector
    threshold: float
    act: Callable[[Prompt], Action]
    steering: Steering | None
    stops: bool
    source: Source


class Generation:
    """State of the rows of one batch; its size does not depend on how many tokens they say.

    Attributes:
        k: tokens that every row has said.
        flagged: rows with an alarm, now or before.
        ended: rows whose text has ended.
        history: a few numbers a row and step, for the result.
    """

    def __init__(self, plan: Plan, prompt: Prompt) -> None:
        rows, length = prompt.tokens.shape
        if length > plan.source.n_ctx:
            raise InputError(
                f"got a prompt of {length} tokens for a model with a context of {plan.source.n_ctx}; need at most the "
                "context: cut the prompt"
            )
        device = plan.source.device
        self.prompt, self._plan, self.k = prompt, plan, 0
        self.features = StepFeatures(
            plan.detector.choice, plan.source.readout, prompt=prompt.tokens, padding=prompt.padding, device=device
        )
        # Its arguments are ours: the checks that callers get would take as long as the score of one row itself.
        self._score = inspect.unwrap(Detector.score).__get__(plan.detector)
        self._statistic = plan.detector.statistic(rows, device)
        self._action = plan.act(prompt)
        self._ends = torch.tensor(prompt.ends, device=device) if prompt.ends else None
        self.flagged = torch.zeros(rows, dtype=torch.bool, device=device)
        self.ended = torch.zeros(rows, dtype=torch.bool, device=device)
        self.history = History()

    def read_prompt(self, end: Tensor | None) -> None:
        """Take in the end of the body at the prompt's positions, [row, pos, d_model], where features need it."""
        if "prefix" in self._plan.detector.choice.groups:
            assert end is not None
            self.features.read_prompt_stream(end)

    def step(
        self,
        states: StepStates,
        said: Int[Tensor, " row"] | None,
        parents: Int[Tensor, " row"] | None = None,
        logits: Float[Tensor, "row d_vocab"] | None = None,
    ) -> Float[Tensor, "row d_vocab"]:
        """Score a step, and give the logits that the next token is chosen from; call it without gradients.

        Args:
            states: what the step shows.
            said: the token that each row said last; None at the first step.
            parents: the row of the step before that each row continues; None: the same rows in the same order.
            logits: what the action changes; None: those of the states.

        Raises:
            InputError: NaN or infinite states or scores.
        """
        k = self.k
        if parents is not None:
            self._select(parents)
        if said is not None:
            self._hear(said)
        score = self._score(self.features.step(states, said), k)
        statistic = self._statistic.step(score, k)
        alarm = statistic > self._plan.threshold
        # Every operation counts here: with one row the model itself is but a few hundred of them.
        self.flagged = self.flagged | (alarm if self._ends is None else alarm & ~self.ended)
        logits, acted = self._action.choose(states.logits if logits is None else logits, self.flagged)
        self.history.steps.append(Step(parents, said, score, statistic, self.flagged, acted, self.ended))
        if self._plan.steering is not None:
            self._plan.steering.plan(self.flagged, self.prompt.tokens.shape[1] + k)
        self.k += 1
        return logits

    def _hear(self, said: Tensor) -> None:
        self._action.hear(said)
        if self._ends is not None:
            self.ended = self.ended | torch.isin(said.to(self.ended.device), self._ends)

    def _select(self, parents: Tensor) -> None:
        self.features.select(parents)
        self._statistic.select(parents)
        self._action.select(parents)
        place = parents.to(self.flagged.device)
        self.flagged, self.ended = self.flagged[place], self.ended[place]
