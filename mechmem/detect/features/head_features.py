"""What chosen heads do at the newest token: how much they write, how sharply they look, and at what."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechmem.detect.features.feature_choice import FeatureChoice
from mechmem.detect.features.readout import Readout
from mechmem.detect.features.step_states import StepStates


def head_statistics(choice: FeatureChoice) -> tuple[str, ...]:
    """Names of the statistics of each head.

    `norm` of what it writes, `entropy` of its attention (nats), `on_prefix`, its attention to the prompt, and, where it
    is known which tokens are rare, `on_rare`, that to rare tokens.
    """
    return ("norm", "entropy", "on_prefix", *(("on_rare",) if choice.rare is not None else ()))


class HeadFeatures:
    """Statistics of heads of rows that decode together."""

    def __init__(
        self,
        choice: FeatureChoice,
        readout: Readout,
        prompt: Int[Tensor, "row pos"],
        padding: Int[Tensor, " row"] | None,
        device: torch.device | str | None,
    ):
        self._choice, self._prompt_len = choice, prompt.shape[1]
        self._w_o = {(layer, head): readout.w_o(layer)[head] for layer, head in choice.heads}
        place = prompt.device if device is None else torch.device(device)
        self._rare_ids = torch.tensor(choice.rare or (), dtype=torch.long, device=place)
        self._rare = self._is_rare(prompt)
        if padding is not None:
            self._rare &= torch.arange(prompt.shape[1], device=place) >= padding.to(place)[:, None]
        self._length = prompt.shape[1]

    def advance(self, said: Int[Tensor, " row"] | None) -> None:
        """Take the newest token of each row in; None: the prompt's last."""
        if said is None:
            return
        if self._length == self._rare.shape[1]:
            # Twice the room: copies cost less than the tokens themselves.
            self._rare = torch.cat([self._rare, torch.zeros_like(self._rare)], 1)
        self._rare[:, self._length] = self._is_rare(said)
        self._length += 1

    def select(self, rows: Int[Tensor, " chosen"]) -> None:
        """Keep these rows, in this order."""
        self._rare = self._rare[rows.to(self._rare.device)]

    def read(self, states: StepStates) -> Float[Tensor, "row feature"]:
        """All statistics of the first head, then those of the next."""
        return torch.cat([self._head(layer, head, states) for layer, head in self._choice.heads], 1)

    def _head(self, layer: int, head: int, states: StepStates) -> Float[Tensor, "row statistic"]:
        weights = states.pattern[layer][:, head].float()
        z, w_o = states.z[layer][:, head], self._w_o[layer, head]
        found = [(z @ w_o.to(z)).float().norm(dim=-1), torch.special.entr(weights).sum(-1)]
        found.append(weights[:, : self._prompt_len].sum(-1))
        if self._choice.rare is not None:
            found.append((weights * self._rare[:, : self._length]).sum(-1))
        return torch.stack(found, 1)

    def _is_rare(self, tokens: Int[Tensor, "*place"]) -> Bool[Tensor, "*place"]:
        return torch.isin(tokens.to(self._rare_ids.device), self._rare_ids)
