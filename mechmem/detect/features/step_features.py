"""Features of one decoding step, the same whether the step was decoded for training or is watched while it runs."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechmem.data.errors import InputError
from mechmem.detect.features.feature_choice import OFFLINE, FeatureChoice
from mechmem.detect.features.head_features import HeadFeatures, head_statistics
from mechmem.detect.features.logit_readings import ENTROPY, TOP, LogitReader
from mechmem.detect.features.prompt_scores import PROMPT_STATISTICS, prompt_scores
from mechmem.detect.features.readout import Readout
from mechmem.detect.features.running_output import OUTPUT_STATISTICS, RunningOutput
from mechmem.detect.features.step_states import StepStates
from mechmem.detect.features.text_features import BUCKETS
from mechmem.model.head_names import head_name

LENS_STATISTICS = ("agrees", "logprob", "log_rank", "entropy")


class StepFeatures:
    """Features of rows that decode together, [row, feature], in the order of the choice's groups.

    Every step is told to it once, in order: `step` (what a monitor calls) takes the step in and reads its features;
    `advance` and `read` are its halves, for callers that do not need the features of every step.

    Attributes:
        choice: which features.
        output: the statistics of the output so far, kept whether they are chosen or not.
    """

    def __init__(
        self,
        choice: FeatureChoice,
        readout: Readout | None = None,
        *,
        prompt: Int[Tensor, "row pos"],
        padding: Int[Tensor, " row"] | None = None,
        device: torch.device | str | None = None,
    ):
        """Begin with what every row was given.

        Args:
            choice: which features; none of the offline groups.
            readout: the model's weights, for "lens" and "heads".
            prompt: token ids, padded at the left where rows differ in length.
            padding: positions of padding of each row; None: there are none.
            device: of the model; None: the prompt's.

        Raises:
            InputError: a group that is not computed while decoding, or that needs the model's weights without them.
        """
        offline = [group for group in choice.groups if group in OFFLINE]
        if offline:
            raise InputError(
                f"got the features {', '.join(offline)}, which are not computed while decoding; need others: output, "
                "prefix, residual, lens, heads or neurons"
            )
        self.choice, self._readout = choice, readout
        self._prompt, self._padding = prompt, padding
        self.output = RunningOutput(len(prompt), prompt.device if device is None else device)
        self._prefix: Tensor | None = None
        self._heads: HeadFeatures | None = None
        if "heads" in choice.groups:
            self._heads = HeadFeatures(choice, self._needed(), prompt, padding, device)
        self._current: Tensor | None = None
        self._d_model: int | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """One for every column; known after the first step where the residual stream is read."""
        return feature_names(self.choice, self._d_model)

    def read_prompt(self, logits: Float[Tensor, "row pos d_vocab"]) -> None:
        """Take the logits of the prompts in, which the group "prefix" needs before the first step."""
        self._prefix = prompt_scores(logits, self._prompt, self._padding)

    def read_prompt_stream(self, residual: Float[Tensor, "row pos d_model"]) -> None:
        """As `read_prompt`, from the residual stream at the end of the body: few logits are held at once."""
        unembed, found = self._needed().unembed, []
        for row in range(len(residual)):
            rows = slice(row, row + 1)
            padding = None if self._padding is None else self._padding[rows]
            found.append(prompt_scores(unembed(residual[row])[None], self._prompt[rows], padding))
        self._prefix = torch.cat(found)

    def step(self, states: StepStates, said: Int[Tensor, " row"] | None) -> Float[Tensor, "row feature"]:
        """Take a step in and read its features.

        Args:
            states: what the step shows.
            said: the token that each row said last; None before anything is said.

        Returns:
            float32, on the device of the states.

        Raises:
            InputError: NaN or infinite logits or activations.
        """
        self.advance(states, said)
        parts = [part for group in self.choice.groups for part in self._parts(group, states)]
        found = torch.cat(parts, 1)
        return check_finite(found.detach() if found.requires_grad else found)

    def advance(self, states: StepStates, said: Int[Tensor, " row"] | None) -> None:
        """Take a step in, without its features."""
        self._current = self.output.step(states.logits, said)
        if self._heads is not None:
            self._heads.advance(said)

    @torch.no_grad()
    def read(self, states: StepStates) -> dict[str, Float[Tensor, "row feature"]]:
        """Features of the step that was taken in last, by group, in the order of the choice."""
        return {group: torch.cat(self._parts(group, states), 1) for group in self.choice.groups}

    def select(self, rows: Any) -> None:
        """Keep the state of these rows, in this order; a row may be taken several times."""
        self.output.select(rows)
        index = torch.as_tensor(rows)
        if self._prefix is not None:
            self._prefix = self._prefix[index.to(self._prefix.device)]
        if self._heads is not None:
            self._heads.select(index)

    def _parts(self, group: str, states: StepStates) -> list[Float[Tensor, "row part"]]:
        """The columns of a group, in parts that are side by side."""
        choice = self.choice
        if group == "output":
            assert self._current is not None
            return [self._current]
        if group == "prefix":
            if self._prefix is None:
                raise InputError('the features "prefix" need the logits of the prompt; need read_prompt(logits) first')
            return [self._prefix]
        if group == "residual":
            self._d_model = states.residual[choice.depths[0]].shape[1]
            return [_wide(states.residual[depth]) for depth in choice.depths]
        if group == "lens":
            return [self._lens(states)]
        if group == "heads":
            assert self._heads is not None
            return [self._heads.read(states)]
        columns = [states.mlp_post[layer][:, neuron] for layer, neuron in choice.neurons]
        return [torch.stack(columns, 1).float()]

    def _lens(self, states: StepStates) -> Float[Tensor, "row feature"]:
        unembed, best = self._needed().unembed, states.logits.argmax(-1, keepdim=True)
        return torch.cat([read_lens(unembed(states.residual[depth]), best) for depth in self.choice.depths], 1)

    def _needed(self) -> Readout:
        if self._readout is None:
            raise InputError('the features "lens" and "heads" need the model\'s weights; need a Readout')
        return self._readout


def _wide(values: Tensor) -> Tensor:
    """In float32; without a call where they are."""
    return values if values.dtype is torch.float32 else values.float()


def read_lens(logits: Float[Tensor, "row d_vocab"], best: Int[Tensor, "row 1"]) -> Float[Tensor, "row statistic"]:
    """What a stream, read by the unembedding, says of the model's own first choice `best`.

    `agrees`: it is the first choice there, too; `logprob` of it, nats; `log_rank`: log of its rank, 0 for the first;
    `entropy` of the distribution there, nats.
    """
    reader = LogitReader()
    readings, below = torch.from_numpy(reader.read(logits)).to(logits.device), reader.all_below()
    own = below.gather(1, best)
    rank = 1 + (below > own).sum(1)
    columns = (rank == 1, own[:, 0] + readings[TOP], rank.log(), readings[ENTROPY])
    return torch.stack([column.float() for column in columns], 1)


def check_finite(features: Float[Tensor, "row feature"]) -> Float[Tensor, "row feature"]:
    """The features as they are.

    Raises:
        InputError: one of them is NaN or infinite.
    """
    # One sum instead of a test of every number: NaN and infinity stay in it. NumPy's costs less where there is one row.
    total = features.numpy().sum() if features.is_cpu else float(features.sum())
    if not math.isfinite(total):
        raise InputError(
            "the model's activations have NaN or infinite values; need finite ones: check the model's weights, or load "
            "it in float32"
        )
    return features


def feature_names(choice: FeatureChoice, d_model: int | None = None, n_layers: int | None = None) -> tuple[str, ...]:
    """A name for every column of a choice.

    "output:entropy", "prefix:mean_nll", "residual3:17", "lens2:log_rank", "L1H2:entropy", "neuron3.17",
    "text:17", "gradient:3".

    Args:
        choice: of any groups.
        d_model: width of the residual stream, which "residual" needs.
        n_layers: which "gradient" needs.
    """
    names: list[str] = []
    for group in choice.groups:
        if group == "output":
            names += [f"output:{name}" for name in OUTPUT_STATISTICS]
        elif group == "prefix":
            names += [f"prefix:{name}" for name in PROMPT_STATISTICS]
        elif group == "residual":
            assert d_model is not None, "the first step says how wide the residual stream is"
            names += [f"residual{depth}:{number}" for depth in choice.depths for number in range(d_model)]
        elif group == "lens":
            names += [f"lens{depth}:{name}" for depth in choice.depths for name in LENS_STATISTICS]
        elif group == "heads":
            names += [f"{head_name(head)}:{name}" for head in choice.heads for name in head_statistics(choice)]
        elif group == "neurons":
            names += [f"neuron{layer}.{neuron}" for layer, neuron in choice.neurons]
        elif group == "text":
            names += [f"text:{bucket}" for bucket in range(BUCKETS)]
        else:
            assert n_layers is not None, "the gradient has a column for each layer"
            names += [f"gradient:{layer}" for layer in range(n_layers)]
    return tuple(names)
