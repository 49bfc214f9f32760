"""What hooks saw of a model's latest forward, at the newest position of every row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor, nn

from mechmem.data.errors import InputError
from mechmem.detect.features.step_states import StepStates

Kind = Literal["residual", "z", "pattern", "mlp_post"]


class Seen:
    """Filled by hooks while something is watched, and emptied by `take`.

    Attributes:
        watching: whether hooks fill it; forwards outside a watched generation are nothing to it.
        forwards: of the whole model since the last `take`.
        mask: attention mask of the latest forward, [row, key_pos], or None where nothing is padded.
        end: the residual stream at the end of the body at all positions, for features of the prompt.
        logits: at the newest position, as the model gives them.
    """

    def __init__(self) -> None:
        self.watching = False
        self._kept: dict[Kind, dict[int, Tensor]] = {"residual": {}, "z": {}, "pattern": {}, "mlp_post": {}}
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.forwards = 0
        self.mask: Tensor | None = None
        self.end: Tensor | None = None
        self.logits: Tensor | None = None
        for kept in self._kept.values():
            kept.clear()

    def keeper(self, kind: Kind, index: int) -> Callable[[Any], None]:
        """A function that takes the newest position of a layer's (or depth's) activation, positions on axis 1."""
        kept = self._kept[kind]

        def keep(value: Tensor) -> None:
            if self.watching:
                kept[index] = value[:, -1]

        return keep

    def keep_end(self, residual: Tensor) -> None:
        """Take the end of the body, [row, pos, d_model]."""
        if self.watching:
            self.end = residual

    def keep_pattern(self, layer: int, pattern: Tensor | None) -> None:
        """Take the newest query's attention of a layer, from [row, head, query_pos, key_pos]."""
        if not self.watching:
            return
        if pattern is None:
            raise InputError(
                "the model's attention gives no pattern, which the detector's heads need; load the model with "
                'attn_implementation="eager"'
            )
        self._kept["pattern"][layer] = pattern[:, :, -1]

    def keep_mask(self, _: nn.Module, __: Any, kwargs: dict[str, Any]) -> None:
        """Take the attention mask that a forward is given: a hook before it."""
        if self.watching:
            self.mask = kwargs.get("attention_mask")

    def keep_logits(self, _: nn.Module, __: Any, output: Tensor) -> None:
        """Take the newest position's logits: a hook behind the unembedding."""
        if self.watching:
            # A view would hold the logits of the whole prompt.
            self.logits = output[:, -1].clone() if output.shape[1] > 1 else output[:, -1]
            self.forwards += 1

    def take(self) -> StepStates:
        """The latest forward's states; the next call needs another forward.

        Raises:
            InputError: the model did not run since, or ran several times.
        """
        if self.logits is None or self.forwards != 1:
            raise InputError(
                f"got {self.forwards} forwards of the model for one token; need exactly 1: decode greedily, by "
                "sampling or by beam search, without guidance, assistant or prompt lookup"
            )
        states = StepStates(self.logits, *(dict(kept) for kept in self._kept.values()))
        self.logits, self.forwards = None, 0
        return states
