"""What a monitor costs while a model decodes: tokens per second with it and without it, and what it holds.

    python experiments/benchmarks/detect.py      # 10 minutes; writes docs/benchmarks/detect.md

The greedy `generate` of transformers runs in pairs, without a monitor and with one, on one thread. Figures are CPU
seconds, and the overhead is the median of the ratios within a pair. Weights of detectors, and of the model of the 125M
shape, are random: the time does not depend on them.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
import transformers
import tyro
from rounds import Shape, stamp, write_page

from mechmem.data.assets import MODEL_FOLDER
from mechmem.data.bounds import Count, Seed, check_fields
from mechmem.data.paragraphs import Paragraphs
from mechmem.detect.detector import Detector
from mechmem.detect.features.feature_choice import FeatureChoice
from mechmem.detect.features.step_features import feature_names
from mechmem.detect.identity import identity_of
from mechmem.detect.monitor.monitor import Monitor
from mechmem.detect.monitor.ngram_filter import NgramFilter
from mechmem.detect.probes.calibration import PlattCalibration
from mechmem.detect.probes.logistic import LogisticProbes

# What is watched: features, and the action.
WATCHED = (
    ("output", "flag"),
    ("output, residual", "flag"),
    ("output, residual", "stop"),
    ("output, residual", "block"),
)


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        rounds: pairs that count, after one that does not.
        rows: of a batch, each size by itself.
        tokens: that every row says.
        prompt: tokens of every prompt.
        lengths: tokens after which the size of a monitor's state is taken.
        shapes: models: the bundled one, and one of GPT-Neo 125M's shape.
        seed: of weights and prompts.
        page: the table, or None.
    """

    rounds: Count = 7
    rows: tuple[Count, ...] = (1, 32)
    tokens: Count = 12
    prompt: Count = 16
    lengths: tuple[Count, ...] = (50, 400)
    shapes: tuple[str, ...] = ("bundled", "125M")
    seed: Seed = 0
    page: Path | None = Path("docs/benchmarks/detect.md")

    def __post_init__(self) -> None:
        check_fields(self)


def loaded(shape: str) -> Any:
    """A model of transformers."""
    if shape == "bundled":
        return transformers.AutoModelForCausalLM.from_pretrained(MODEL_FOLDER, dtype=torch.float32).eval()
    size = Shape()
    config = transformers.GPTNeoConfig(
        hidden_size=size.width,
        num_layers=size.layers,
        num_heads=size.heads,
        attention_types=[[["global", "local"], size.layers // 2]],
        vocab_size=size.vocabulary,
        max_position_embeddings=512,
    )
    return transformers.GPTNeoForCausalLM(config).eval()


def random_detector(model: Any, groups: str) -> Detector:
    """A detector that reads these features, the residual stream in the middle, and never raises an alarm."""
    layers, embedding = model.config.num_layers, model.get_input_embeddings().weight
    choice = FeatureChoice(tuple(groups.split(", ")), depths=(layers // 2,))  # pyright: ignore[reportArgumentType]
    names = feature_names(choice, embedding.shape[1])
    weight = torch.randn(1, len(names)) / len(names) ** 0.5
    probes = LogisticProbes(torch.zeros_like(weight), weight, torch.zeros(1))
    calibration = PlattCalibration(torch.ones(1), torch.zeros(1))
    identity = identity_of(embedding, layers, embedding.dtype)
    null = np.full(99, 1e9)
    return Detector(
        choice, names, (0,), probes, calibration, rule="max", null=null, generation_len=50, identity=identity
    )


def said(model: Any, prompt: torch.Tensor, tokens: int, monitor: Monitor | None = None, **options: Any) -> None:
    """So many tokens of every row."""
    options |= {"max_new_tokens": tokens, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    options |= {"attention_mask": torch.ones_like(prompt)}
    if monitor is None:
        model.generate(prompt, **options)
        return
    with monitor:
        model.generate(prompt, **options)


def seconds(work: Any) -> float:
    """CPU seconds of this process, which has one thread."""
    before = process_time()
    work()
    return process_time() - before


def held(thing: Any, seen: set[int]) -> int:
    """Bytes of the tensors and arrays that an object reaches through its own attributes and containers."""
    if id(thing) in seen:
        return 0
    seen.add(id(thing))
    if isinstance(thing, torch.Tensor):
        return thing.untyped_storage().nbytes()
    if isinstance(thing, np.ndarray):
        return thing.nbytes
    if isinstance(thing, dict):
        return sum(held(each, seen) for each in thing.values())
    if isinstance(thing, list | tuple):
        return sum(held(each, seen) for each in thing)
    own = type(thing).__module__.startswith("mechmem.detect") and hasattr(thing, "__dict__")
    return held(vars(thing), seen) if own else 0


def state_sizes(model: Any, prompt: torch.Tensor, lengths: tuple[int, ...]) -> dict[int, int]:
    """Bytes of a monitor's state after so many tokens, without the numbers of its result."""
    monitor, found = Monitor(random_detector(model, "output, residual"), model, false_alarms=0.1), {}

    def look(input_ids: torch.Tensor, _: Any, **__: Any) -> torch.Tensor:
        own = input_ids.shape[1] - prompt.shape[1]
        if own in lengths:
            generation: Any = monitor._run._generation  # pyright: ignore[reportOptionalMemberAccess]
            state = {name: value for name, value in vars(generation).items() if name not in ("history", "_plan")}
            found[own] = held(state, {id(monitor._plan.detector), id(monitor._plan)})
        return torch.zeros(len(input_ids), dtype=torch.bool)

    said(model, prompt, max(lengths), monitor, stopping_criteria=[look])
    return found


def measured(shape: str, settings: Settings) -> tuple[list[dict[str, Any]], dict[int, int]]:
    """Of every batch size, features and action: tokens per second and the overhead; and the sizes of the state."""
    model = loaded(shape)
    vocabulary, rows_found = model.config.vocab_size, []
    known = NgramFilter.of(Paragraphs(torch.randint(0, vocabulary, (1000, 100)), prefix_len=50))
    for rows in settings.rows:
        prompt = torch.randint(0, vocabulary, (rows, settings.prompt))
        plain = partial(said, model, prompt, settings.tokens)
        ways = {}
        for groups, action in WATCHED if shape == "bundled" else WATCHED[1:2]:
            options = {"memorized": known} if action == "block" else {}
            if action == "stop" and rows > 1:
                continue  # without an end of text one row alone can be stopped
            monitor = Monitor(random_detector(model, groups), model, action, false_alarms=0.1, **options)  # pyright: ignore[reportArgumentType]
            ways[groups, action] = partial(said, model, prompt, settings.tokens, monitor)
        pairs: dict[Any, list[tuple[float, float]]] = {way: [] for way in ways}
        for _ in range(settings.rounds + 1):
            for way, work in ways.items():
                pairs[way].append((seconds(plain), seconds(work)))
        for (groups, action), found in pairs.items():
            without, with_it = np.array(found[1:]).T
            share = 100 * (with_it / without - 1)
            rows_found.append(
                {
                    "shape": shape,
                    "rows": rows,
                    "features": groups,
                    "action": action,
                    "overhead": float(np.median(share)),
                }
                | {"lowest": float(share.min()), "highest": float(share.max())}
                | {
                    "without": rows * settings.tokens / float(np.median(without)),
                    "with": rows * settings.tokens / float(np.median(with_it)),
                    "extra": 1000 * float(np.median(with_it - without)) / settings.tokens,
                }
            )
    if model.config.max_position_embeddings < settings.prompt + max(settings.lengths):
        return rows_found, {}
    return rows_found, state_sizes(model, torch.randint(0, vocabulary, (1, settings.prompt)), settings.lengths)


@torch.no_grad()
def main(settings: Settings) -> list[dict[str, Any]]:
    """Measure every model and write the page.

    Args:
        settings: what is measured.

    Returns:
        Of each model, batch size, features and action: `without` and `with` a monitor, tokens per CPU second;
        `overhead` in percent, the median, `lowest` and `highest` of the pairs; `extra`, milliseconds a step; and
        `state`, bytes of a monitor's state for one row by tokens said, where the context holds them.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(settings.seed)
    try:
        results = []
        for shape in settings.shapes:
            found, sizes = measured(shape, settings)
            results += [row | {"state": sizes} for row in found]
        page = _page(results, settings)
    finally:
        torch.set_num_threads(threads)
    write_page(settings.page, page)
    return results


def _page(results: list[dict[str, Any]], settings: Settings) -> list[str]:
    lines = [
        "# A monitor's cost",
        "",
        f"{stamp('detect.py', settings.rounds, settings.seed)} transformers' `generate`, greedy, {settings.prompt} "
        f"tokens of prompt and {settings.tokens} said, tokens per CPU second. Overhead: the median, lowest "
        "and highest of the ratios within a pair. Extra: CPU milliseconds a step, of all rows together.",
        "",
        "| model | rows | features | action | without | with | overhead, % | lowest | highest | extra, ms |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in results:
        lines.append(
            f"| {row['shape']} | {row['rows']} | {row['features']} | {row['action']} | {row['without']:.1f} | "
            f"{row['with']:.1f} | {row['overhead']:.1f} | {row['lowest']:.1f} | {row['highest']:.1f} | "
            f"{row['extra']:.2f} |"
        )
    states = {row["shape"]: row["state"] for row in results if row["state"]}
    said_of = [
        f"{shape}: " + ", ".join(f"{size:,} after {length} tokens" for length, size in sizes.items())
        for shape, sizes in states.items()
    ]
    return [*lines, "", f"Bytes of the state of one row, without the numbers of the result: {'; '.join(said_of)}."]


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
