"""A model's `generate` in a monitor's block, and what its arguments say of ends and beams."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mechmem.data.errors import InputError
from mechmem.detect.monitor.ends import as_ends

# Options of transformers' generate that run the model otherwise than once a token.
REFUSED = {
    "assistant_model": None,
    "prompt_lookup_num_tokens": None,
    "guidance_scale": (None, 1),
    "prefill_chunk_size": None,
    "use_mtp": (None, False),
    "penalty_alpha": (None, 0),
    "dola_layers": None,
    "num_beam_groups": (None, 1),
    "constraints": None,
    "force_words_ids": None,
}


@contextmanager
def patched_generate(model: Any, watched: Callable[[Callable[..., Any], dict[str, Any]], Any]) -> Iterator[None]:
    """A block in which calls of `model.generate` go to a function, with the original one and all arguments by name."""
    original = model.generate
    signature = inspect.signature(original)

    def generate(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs).arguments
        extra = next((p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD), "")
        return watched(original, bound | bound.pop(extra, {}))

    own = vars(model).get("generate")
    model.generate = generate
    try:
        yield
    finally:
        if own is None:
            del model.generate
        else:
            model.generate = own


def causal_options(model: Any, given: Mapping[str, Any], action: str) -> tuple[tuple[int, ...], int]:
    """The tokens that end a text, and the beams, of a call of transformers' generate.

    Raises:
        InputError: a way of decoding that is not watched, or an action that does not work with it.
    """

    def option(name: str) -> Any:
        if given.get(name) is not None:
            return given[name]
        configs = (given.get("generation_config"), model.generation_config)
        return next((found for each in configs if (found := getattr(each, name, None)) is not None), None)

    for name, plain in REFUSED.items():
        if option(name) not in (plain if isinstance(plain, tuple) else (plain,)):
            raise InputError(
                f"got {name} for generate, which runs the model otherwise than once a token; need greedy decoding, "
                f"sampling or beam search: omit {name}"
            )
    prompt = given.get("inputs") if given.get("inputs") is not None else given.get("input_ids")
    most = model.config.max_position_embeddings
    if prompt is not None and prompt.shape[1] > most:
        raise InputError(
            f"got a prompt of {prompt.shape[1]} tokens for a model with a context of {most}; need at most the context: "
            "cut the prompt"
        )
    if model.training:
        raise InputError("got a model in training mode, whose dropout changes its states; need model.eval()")
    beams = int(option("num_beams") or 1)
    if action == "steer" and beams > 1:
        raise InputError(
            "got action 'steer' with beam search, whose rows change places before they are known; need greedy decoding "
            "or sampling: num_beams=1"
        )
    return as_ends(option("eos_token_id")), beams


def hooked_ends(model: Any, given: Mapping[str, Any], action: str) -> tuple[int, ...]:
    """The tokens that end a text, of a call of HookedTransformer's generate.

    Raises:
        InputError: "stop", where there is none.
    """
    ends: Any = None
    if given.get("stop_at_eos", True):
        ends = given.get("eos_token_id")
        ends = getattr(model.tokenizer, "eos_token_id", None) if ends is None else ends
    found = as_ends(ends)
    if action == "stop" and not found:
        raise InputError(
            "got action 'stop' for a generation that no token ends; need one: generate(stop_at_eos=True, "
            "eos_token_id=...)"
        )
    return found
