"""What a monitor notes at every step, and the result that it becomes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechmem.detect.detector import Detector


class Step(NamedTuple):
    """One step of all rows; everything is [row], in the order that the rows had then.

    Attributes:
        parents: the row of the step before that each row continues; None: the same rows in the same order.
        said: the token that each row said last; None at the first step.
        score: the detector's.
        statistic: of the scores so far.
        flagged: now or before.
        acted: whether the action changed something at this step.
        ended: whether the row's text had ended before.
    """

    parents: Int[Tensor, " row"] | None
    said: Int[Tensor, " row"] | None
    score: Float[Tensor, " row"]
    statistic: Float[Tensor, " row"]
    flagged: Bool[Tensor, " row"]
    acted: Bool[Tensor, " row"]
    ended: Bool[Tensor, " row"]


class History:
    """The steps of one generation: a few numbers a row and step, and no states."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.last: Tensor | None = None

    def rows(self) -> Int[np.ndarray, "row k"]:
        """Each row of the last step, followed back: its place at every step."""
        place = np.arange(len(self.steps[-1].score))
        found = [place]
        for step in reversed(self.steps[1:]):
            if step.parents is not None:
                place = step.parents.cpu().numpy()[place]
            found.append(place)
        return np.stack(found[::-1], 1)

    def hypotheses(self, own: Int[np.ndarray, "text k"], starts: Int[np.ndarray, " text"]) -> np.ndarray:
        """The place at every step of texts of which beam search kept some: [text, k], -1 where it was in no beam.

        Args:
            own: the tokens that each text's model said.
            starts: a row of the first step with the text's prompt.
        """
        places = np.full((len(own), len(self.steps)), -1)
        for number, (tokens, start) in enumerate(zip(own, starts, strict=True)):
            here = np.array([start])
            for k, step in enumerate(self.steps):
                if k:
                    before = np.arange(len(step.score)) if step.parents is None else step.parents.cpu().numpy()
                    assert step.said is not None
                    here = np.flatnonzero(np.isin(before, here) & (step.said.cpu().numpy() == tokens[k - 1]))
                    if not len(here):
                        break
                places[number, k] = here[0]
        return places

    def gathered(self, name: str, places: Int[np.ndarray, "text k"], missing: Any) -> np.ndarray:
        """One of the steps' numbers at every text's place, [text, k]."""
        columns = [getattr(step, name).cpu().numpy() for step in self.steps]
        found = np.stack([values[np.maximum(places[:, k], 0)] for k, values in enumerate(columns)], 1)
        return np.where(places >= 0, found, missing)

    def said(self, places: Int[np.ndarray, "text k"]) -> Int[np.ndarray, "text k"]:
        """The token that each row said at every step; -1 where it is not known."""
        none = np.full(len(self.steps[0].score), -1)
        heard = [step.said for step in self.steps[1:]] + [self.last]
        columns = [none if said is None else said.cpu().numpy() for said in heard]
        # A token is heard in the order of the next step.
        after = np.concatenate([places[:, 1:], places[:, -1:]], 1)
        return np.stack([columns[k][after[:, k]] for k in range(len(columns))], 1)


def result(
    history: History,
    places: Int[np.ndarray, "row k"],
    said: Int[np.ndarray, "row k"],
    detector: Detector,
) -> xr.Dataset:
    """The Dataset that `Monitor.result` describes."""
    ended = history.gathered("ended", places, True).astype(bool)
    score = np.where(ended, np.nan, history.gathered("score", places, np.nan))
    statistic = history.gathered("statistic", places, np.nan)
    p_value = detector.p_value(torch.from_numpy(statistic).float().flatten()).numpy().reshape(statistic.shape)
    flagged = history.gathered("flagged", places, False).astype(bool)
    acted = history.gathered("acted", places, False).astype(bool) & ~ended
    first = np.where(flagged.any(1), flagged.argmax(1), np.nan)
    dims = ("row", "k")
    data = {
        "token": (dims, np.where(ended, -1, said), {"units": "token id", "missing": "-1: the text had ended"}),
        "score": (dims, score, {"units": "probability", "higher": "more likely recited"}),
        "p_value": (dims, np.where(ended, np.nan, p_value), {"units": "1", "higher": "more like text not memorized"}),
        "flagged": (dims, flagged, {"units": "1"}),
        "acted": (dims, acted, {"units": "1"}),
        "flagged_at": (("row",), first, {"units": "own tokens", "higher": "noticed later; NaN: never"}),
    }
    return xr.Dataset(data, {"row": np.arange(len(places)), "k": np.arange(places.shape[1])})
