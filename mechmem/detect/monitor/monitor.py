"""A detector that watches a model decode, and acts on what it notices."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import xarray as xr
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechmem.data.bounds import Amount, Count, Factor, Level, Seed, checked
from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.detect.decoding.decoding_settings import DecodingSettings
from mechmem.detect.detector import Detector
from mechmem.detect.monitor.causal_run import CausalRun
from mechmem.detect.monitor.causal_source import CausalSource
from mechmem.detect.monitor.hooked_run import HookedRun
from mechmem.detect.monitor.hooked_source import HookedSource
from mechmem.detect.monitor.ngram_filter import NgramFilter
from mechmem.detect.monitor.plans import MonitorAction, made_plan
from mechmem.detect.monitor.seen import Seen
from mechmem.detect.monitor.stream import SpokenToken, Stream, StreamPrompt
from mechmem.detect.monitor.watched_generate import causal_options, hooked_ends, patched_generate
from mechmem.model.load import HookedTransformer
from mechmem.model.model_lock import holding

_watched: WeakKeyDictionary[Any, Monitor] = WeakKeyDictionary()
_guard = threading.Lock()


class Monitor:
    """Scores every token that a model says, while it says it, and raises an alarm where it recites.

    With transformers' own model or a `HookedTransformer`::

        with mm.Monitor(detector, model) as monitor:
            model.generate(**inputs, max_new_tokens=50)
        monitor.result

    In the block, `model.generate` is watched: hooks read the model's states, scores come from its own logits (before
    any temperature or other processor), and rows are followed through left padding, beam search and finished texts.
    `logits_processor` and `stopping_criteria` may be named in the call, but need not be. At the end of the block the
    model is as it was, whatever happens. `stream` decodes one prompt and yields its tokens.

    At every step k, k tokens are said and the next is not chosen yet. Actions: "flag" changes nothing; "stop" ends a
    row at the step of its alarm, with the end-of-text token in place of its next one; "block" never lets a row, with
    an alarm or without, complete an n-gram of `memorized` (MemFree; Ippolito et al. 2023); "steer" scales heads' z or
    neurons of rows with an alarm, from their next token on.
    """

    @checked
    def __init__(
        self,
        detector: Detector,
        model: Any,
        action: MonitorAction = "flag",
        *,
        false_alarms: Level = 0.01,
        memorized: Paragraphs | NgramFilter | None = None,
        n: Count | None = None,
        heads: Sequence[tuple[int, int] | str] | None = None,
        neurons: Sequence[tuple[int, int]] | None = None,
        factor: Factor | None = None,
    ) -> None:
        """Check that detector, model and action fit.

        Args:
            detector: of `train_detector`, for this model, precision and tokenizer.
            model: a HookedTransformer, or transformers' own GPT-Neo, GPT-2 or GPT-NeoX; left as it is.
            action: see above.
            false_alarms: share of generations of text that is not recited that may raise an alarm.
            memorized: for "block": paragraphs, or the filter of their n-grams.
            n: for "block": tokens of an n-gram; None: 10.
            heads: for "steer": (layer, head) pairs or names (L1H2), as localization found them.
            neurons: for "steer": (layer, neuron) pairs, as `top_neurons` gives.
            factor: for "steer": what their outputs are multiplied by; None: 0.

        Raises:
            InputError: an unknown action, options that the action does not use, or a detector that does not fit.
        """
        self._source = HookedSource(model) if isinstance(model, HookedTransformer) else CausalSource(model)
        options = {"memorized": memorized, "n": n, "heads": heads, "neurons": neurons, "factor": factor}
        self._plan = made_plan(detector, self._source, action, false_alarms, options)
        self.detector, self.model, self.action, self.false_alarms = detector, model, action, false_alarms
        self._seen = Seen()
        self._run: CausalRun | HookedRun | None = None
        self._stack: ExitStack | None = None
        self._result: xr.Dataset | None = None
        self.logits_processor: Callable[..., Tensor] = _Processor(self)
        self.stopping_criteria: Callable[..., Tensor] = _Criteria(self)

    @property
    def threshold(self) -> float:
        """The statistic above which there is an alarm, nats; infinity: never."""
        return self._plan.threshold

    @property
    def result(self) -> xr.Dataset:
        """Of the latest generation.

        Dataset: token[row, k] that the row said at step k (-1 where its text had ended), score[row, k] before it was
        chosen (probability at even odds; NaN where ended), p_value[row, k] of the generation so far, flagged[row, k]
        (an alarm now or before), acted[row, k] (the action changed something), flagged_at[row] (own tokens said at the
        alarm; NaN: never). Rows are those that `generate` returned. Of beam search they are the hypotheses that it
        returned, each followed back through the beams.

        Raises:
            InputError: nothing was generated yet.
        """
        if self._result is None:
            raise InputError(
                "got no generation yet; need one: with monitor: model.generate(...), or monitor.stream(prompt)"
            )
        return self._result

    def __enter__(self) -> Monitor:
        with _guard:
            if self.model in _watched:
                raise InputError("the model is watched by a monitor already; need one at a time: end its block first")
            _watched[self.model] = self
        stack = ExitStack()
        stack.callback(_watched.pop, self.model, None)
        with stack:
            stack.enter_context(holding(self.model))
            stack.enter_context(self._source.hooks(self.detector.choice, self._seen, self._plan.steering))
            if isinstance(self._source, HookedSource):
                embed: Any = self.model.embed
                stack.callback(embed.register_forward_pre_hook(self._hear).remove)
                stack.callback(self.model.unembed.register_forward_hook(self._choose).remove)
            stack.enter_context(patched_generate(self.model, self._generate))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        stack, self._stack = self._stack, None
        if stack is not None:
            stack.close()

    @checked
    def stream(
        self,
        prompt: StreamPrompt,
        max_new_tokens: Count = 50,
        *,
        temperature: Amount = 0.0,
        top_k: Count | None = None,
        seed: Seed = 0,
    ) -> Iterator[SpokenToken]:
        """Decode one prompt, and yield each token with its score as it is said.

        Between two tokens nothing is on the model. The text ends at the tokenizer's end-of-text token, after
        `max_new_tokens`, or, with "stop", at the alarm: then the last item is a mark without a token. `result` holds
        what was said, also where the loop was left early.

        Args:
            prompt: text, or ids.
            max_new_tokens: tokens said at most.
            temperature: of sampling; 0: the first choice is taken.
            top_k: sampling chooses among this many tokens; None: among all.
            seed: of sampling.

        Raises:
            InputError: text without a tokenizer, an empty prompt, or more tokens than the model's context.
        """
        settings = DecodingSettings(max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, seed=seed)
        return iter(Stream(self._plan, prompt, settings, max_new_tokens, self._keep))

    def _keep(self, result: xr.Dataset | None) -> None:
        self._result = None if result is None else result.assign_attrs(self._attrs)

    @property
    def _attrs(self) -> dict[str, Any]:
        return {"action": self.action, "false_alarms": self.false_alarms, "threshold": self.threshold}

    @contextmanager
    def _running(self, run: CausalRun | HookedRun) -> Iterator[None]:
        if self._run is not None:
            raise InputError("the model is generating already; need one call of generate at a time")
        self._run, self._result, self._seen.watching = run, None, True
        try:
            yield
        finally:
            self._run, self._seen.watching = None, False
            self._seen.clear()
            if self._plan.steering is not None:
                self._plan.steering.stop()

    def _generate(self, original: Callable[..., Any], given: dict[str, Any]) -> Any:
        """One call of the model's generate, watched."""
        if isinstance(self._source, HookedSource):
            run = HookedRun(self._plan, self._seen, ends=hooked_ends(self.model, given, self.action))
            with self._running(run):
                output = original(**given)
                self._keep(run.finish())
            return output
        ends, beams = causal_options(self.model, given, self.action)
        run = CausalRun(self._plan, self._seen, ends=ends, beams=beams)
        added: dict[str, Any] = {"logits_processor": self.logits_processor}
        if self.action == "stop":
            added["stopping_criteria"] = self.stopping_criteria
        for name, ours in added.items():
            theirs = list(given.get(name) or [])
            given[name] = theirs if any(each is ours for each in theirs) else [*theirs, ours]
        with self._running(run):
            output = original(**given)
            self._keep(run.finish(output))
        return output

    def _hear(self, _: Any, args: tuple[Any, ...]) -> None:
        if isinstance(self._run, HookedRun):
            self._run.hear(args[0])

    def _choose(self, _: Any, __: Any, output: Tensor) -> None:
        # The lens reads through the same unembedding, in the middle of a step.
        if isinstance(self._run, HookedRun) and self._seen.watching:
            self._seen.watching = False
            self._run.choose(output)
            self._seen.watching = True

    def _causal_run(self) -> CausalRun:
        if not isinstance(self._run, CausalRun):
            raise InputError(
                "got tokens that this monitor does not watch; need its own model's generate, in its block: "
                "with monitor: model.generate(...)"
            )
        return self._run


class _Processor:
    """transformers calls it with all ids so far and the scores of the next token."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor

    def __call__(
        self, input_ids: Int[Tensor, "row pos"], scores: Float[Tensor, "row d_vocab"]
    ) -> Float[Tensor, "row d_vocab"]:
        return self._monitor._causal_run().choose(input_ids, scores)


class _Criteria:
    """transformers calls it with all ids, the newest token included; rows with an alarm end."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor

    def __call__(self, input_ids: Int[Tensor, "row pos"], scores: object, **_: Any) -> Bool[Tensor, " row"]:  # noqa: ARG002
        return self._monitor._causal_run().stops(input_ids)
