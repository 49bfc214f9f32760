"""Speed and memory of scoring paragraphs, compared with other implementations.

    python experiments/benchmarks/measure.py            # both models; about half an hour on two cores
    python experiments/benchmarks/measure.py bundled    # one of them
    python experiments/benchmarks/measure.py perturb    # perturbing every prefix position, against decoding each
    python experiments/benchmarks/measure.py documents  # document mode against windows, in tokens per second
    python experiments/benchmarks/measure.py memory     # peak memory of a scan against the length of the corpus

All implementations score the same paragraphs and alternate for ROUNDS rounds; figures are medians, and ratios are taken
within a round.
Writes docs/benchmarks/measure-<what>.md.
"""

import ctypes
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, GPTNeoConfig, GPTNeoForCausalLM

import mechmem as mm
from mechmem.data.assets import MODEL_FOLDER
from mechmem.data.shards import Documents
from mechmem.measure.decode import greedy_continuations
from mechmem.measure.exact import ExactScorer
from mechmem.measure.tolerance import CALIBRATION
from mechmem.model.lean.model import LeanModel
from mechmem.scan.spans import SpanSettings, find_spans

# Settings -------------------------------------------------------------------------------------------------------------
PAGES = Path("docs/benchmarks")
ROUNDS = 5
SEED = 0
PREFIX, LENGTH = 50, 100
# Paragraphs of the ways that decode token by token, of one forward, and of the cascade.
FEW, SOME, MANY = {"125m": 32, "bundled": 128}, {"125m": 64, "bundled": 512}, {"125m": 200, "bundled": 1000}
BATCH = 32
# Documents and their length.
READ = {"bundled": (20, 2000), "125m": (5, 2000)}
PERTURBED = {"bundled": 90, "125m": 8}
SHAPE = {"125m": (12, 768, 12, 50257), "bundled": (6, 256, 8, 4096)}
TARGETS = {
    "mechmem.score / transformers forward": 2.0,
    "full scan, float32 / transformers forward": 2.0,
    "full scan, float32 / HookedTransformer generate + NLL": 6.0,
    "cascade, bfloat16, 1 % / HookedTransformer generate + NLL": 15.0,
    "full scan, float32 / matrix products alone, float32": 0.6,
}


def models(name: str) -> tuple[Any, Any]:
    """The same model as a HookedTransformer and in transformers."""
    if name == "bundled":
        return mm.load_model("bundled"), AutoModelForCausalLM.from_pretrained(MODEL_FOLDER, dtype=torch.float32).eval()
    torch.manual_seed(SEED)
    layers, width, heads, vocabulary = SHAPE[name]
    config = GPTNeoConfig(
        hidden_size=width,
        num_layers=layers,
        num_heads=heads,
        vocab_size=vocabulary,
        attention_types=[[["global", "local"], layers // 2]],
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=0,
    )
    reference = GPTNeoForCausalLM(config).eval()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference.save_pretrained(folder)
        return mm.load_model(folder), reference


def paragraphs(name: str, model: Any, count: int, memorized: float) -> mm.Paragraphs:
    """Paragraphs of which a given share is memorized: shipped ones, or random ids continued by the random model."""
    rng = np.random.default_rng(SEED)
    known = round(count * memorized)
    if name == "bundled":
        shipped = mm.bundled_paragraphs()
        em = ExactScorer(model, shipped.select(range(CALIBRATION))).score(shipped).em
        chosen = [
            rng.choice(np.flatnonzero((em == 50) == kind), number) for kind, number in ((1, known), (0, count - known))
        ]
        return shipped.select(rng.permutation(np.concatenate(chosen)))
    tokens = torch.from_numpy(rng.integers(0, model.cfg.d_vocab, (count, LENGTH)))
    if known:
        lean, start = LeanModel(model), tokens[:known]
        nothing = np.zeros(known, dtype=int)
        first = lean.unembed(lean.forward(start[:, :PREFIX])[:, -1]).argmax(-1).numpy()
        said = greedy_continuations(lean, start, PREFIX, nothing, first)
        tokens[:known, PREFIX:] = torch.from_numpy(said)
    return mm.Paragraphs(tokens[torch.from_numpy(rng.permutation(count))], PREFIX)


def batches(tokens: torch.Tensor, size: int = BATCH) -> tuple[torch.Tensor, ...]:
    """Rows of ids in batches."""
    return tokens.split(size)


@torch.no_grad()
def hooked_way(model: Any, tokens: torch.Tensor) -> None:
    """As the paper's code does: decode greedily with HookedTransformer, then a forward for the NLL."""
    for batch in batches(tokens):
        model.generate(
            batch[:, :PREFIX],
            max_new_tokens=LENGTH - PREFIX,
            do_sample=False,
            stop_at_eos=False,
            prepend_bos=False,
            verbose=False,
        )
        model(batch, return_type="logits").log_softmax(-1)


@torch.no_grad()
def generate(reference: Any, tokens: torch.Tensor) -> None:
    """Greedy decoding with transformers and its cache."""
    for batch in batches(tokens):
        prefix = batch[:, :PREFIX]
        reference.generate(
            prefix, attention_mask=torch.ones_like(prefix), do_sample=False, max_new_tokens=50, use_cache=True
        )


@torch.no_grad()
def forward(reference: Any, tokens: torch.Tensor, precision: str = "highest") -> None:
    """A forward in transformers with the logits of every position."""
    torch.set_float32_matmul_precision(precision)
    for batch in batches(tokens, 16):
        reference(batch)
    torch.set_float32_matmul_precision("highest")


def compiled(reference: Any) -> Callable[[torch.Tensor], None]:
    """The compiled body of the transformers model, with the head on the scored columns only."""
    body = torch.compile(reference.transformer, dynamic=False)

    @torch.no_grad()
    def run(tokens: torch.Tensor) -> None:
        torch.set_float32_matmul_precision("medium")
        for batch in batches(tokens, 16):
            hidden = body(batch[:, :-1]).last_hidden_state[:, PREFIX - 1 :]
            reference.lm_head(hidden).float().log_softmax(-1)
        torch.set_float32_matmul_precision("highest")

    return run


def products(name: str, count: int, dtype: torch.dtype, precision: str) -> None:
    """Only the matrix products needed for `count` paragraphs, in batches of 16."""
    layers, width, _, vocabulary = SHAPE[name]
    torch.set_float32_matmul_precision(precision)
    rows = 16 * (LENGTH - 1)
    shapes = [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)]
    weights = [torch.randn(shape).to(dtype) for shape in shapes]
    inputs = [torch.randn(rows, shape[0]).to(dtype) for shape in shapes]
    outputs = [torch.empty(rows, shape[1], dtype=dtype) for shape in shapes]
    head, columns = torch.randn(width, vocabulary).to(dtype), torch.randn(80, width).to(dtype)
    logits = torch.empty(80, vocabulary, dtype=dtype)
    for _ in range(count // 16):
        for _ in range(layers):
            for x, weight, out in zip(inputs, weights, outputs, strict=True):
                torch.mm(x, weight, out=out)
        for _ in range(16 * (LENGTH - PREFIX) // 80):
            torch.mm(columns, head, out=logits)
    torch.set_float32_matmul_precision("highest")


def peak_memory(work: Callable[[], None]) -> float:
    """Peak memory of a call above what the process held before, in MB."""
    # Return freed memory to the system first: memory that is reused would not count.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    work()
    return memory("VmHWM") - before


def memory(field: str) -> float:
    """A field of this process's status, in MB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1000


def ways(name: str) -> dict[str, tuple[int, Callable[[], Any]]]:
    """Each implementation's number of paragraphs and its work."""
    model, reference = models(name)
    few, some, many = FEW[name], SOME[name], MANY[name]
    mixed = {share: paragraphs(name, model, many, share) for share in (0.01, 0.1, 1.0)}
    tokens = mixed[0.1].tokens
    calibration = mixed[0.1].select(range(CALIBRATION))
    full = ExactScorer(model, calibration)
    cascades = {p: ExactScorer(model, calibration, method="cascade", precision=p) for p in ("float32", "bfloat16")}
    body = compiled(reference)
    found: dict[str, tuple[int, Callable[[], Any]]] = {
        "HookedTransformer generate + NLL": (few, lambda: hooked_way(model, tokens[:few])),
        "transformers generate": (few, lambda: generate(reference, tokens[:few])),
        "transformers forward": (some, lambda: forward(reference, tokens[:some])),
        "transformers forward, medium": (some, lambda: forward(reference, tokens[:some], "medium")),
        "transformers body compiled, 50 columns, medium": (some, lambda: body(tokens[:some])),
        "mechmem.score": (few, lambda: mm.score(model, mixed[0.1].select(range(few)))),
        "full scan, float32": (some, lambda: full.score(mixed[0.1].select(range(some)))),
    }
    for precision, scorer in cascades.items():
        for share, paras in mixed.items():
            # Fewer paragraphs when all are memorized: then none leaves the cascade early.
            chosen = paras if share < 0.5 else paras.select(range(some))
            found[f"cascade, {precision}, {share * 100:.0f} %"] = (
                len(chosen),
                lambda scorer=scorer, chosen=chosen: scorer.score(chosen),
            )
    for dtype, precision in ((torch.float32, "highest"), (torch.float32, "medium"), (torch.bfloat16, "highest")):
        label = str(dtype).removeprefix("torch.") + (
            " as MKL does" if (dtype, precision) == (torch.float32, "highest") else ""
        )
        found[f"matrix products alone, {label}"] = (
            some,
            lambda dtype=dtype, precision=precision: products(name, some, dtype, precision),
        )
    return found


def measure(name: str) -> None:
    """Time every implementation, round by round, and write the page."""
    table = ways(name)
    peaks: dict[str, float] = {}
    for way, (_, work) in table.items():
        print(f"warming up: {way}", flush=True)
        peaks[way] = peak_memory(work)
    speeds: dict[str, list[float]] = {way: [] for way in table}
    for turn in range(ROUNDS):
        for way, (count, work) in table.items():
            started = time.perf_counter()
            work()
            speeds[way].append(count / (time.perf_counter() - started))
            print(f"round {turn + 1}  {way:<50} {speeds[way][-1]:9.2f}/s", flush=True)
    write(name, speeds, peaks, {way: count for way, (count, _) in table.items()})


def write(name: str, speeds: dict[str, list[float]], peaks: dict[str, float], counts: dict[str, int]) -> None:
    """The page of one model."""
    lines = [f"# Scoring: {'a random GPT-Neo of the 125M shape' if name == '125m' else 'the bundled model'}", ""]
    lines += [stamp(f"python experiments/benchmarks/measure.py {name}"), ""]
    lines += [
        "| implementation | paragraphs | paragraphs/s, median | lowest | highest | peak memory above the model, MB |"
    ]
    lines += ["|---|---|---|---|---|---|"]
    for way, values in speeds.items():
        low, middle, high = min(values), float(np.median(values)), max(values)
        lines.append(f"| {way} | {counts[way]} | {middle:.1f} | {low:.1f} | {high:.1f} | {peaks[way]:.0f} |")
    lines += ["", "| ratio, within a round | median | lowest | highest | target |", "|---|---|---|---|---|"]
    for pair, target in TARGETS.items():
        top, bottom = pair.split(" / ")
        ratios = np.array(speeds[top]) / np.array(speeds[bottom])
        lines.append(f"| {pair} | {np.median(ratios):.2f} | {ratios.min():.2f} | {ratios.max():.2f} | {target} |")
    for top, bottom in (
        ("full scan, float32", "transformers forward, medium"),
        ("full scan, float32", "transformers body compiled, 50 columns, medium"),
    ):
        ratios = np.array(speeds[top]) / np.array(speeds[bottom])
        lines.append(f"| {top} / {bottom} | {np.median(ratios):.2f} | {ratios.min():.2f} | {ratios.max():.2f} | |")
    save(f"measure-{name}.md", lines)


def stamp(command: str) -> str:
    """The command, machine and settings behind the figures."""
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    return (
        f"`{command}`, {datetime.now(UTC):%Y-%m-%d}, {machine}, "
        f'seed {SEED}, {ROUNDS} rounds. "medium" lets oneDNN compute float32 products; the arithmetic is still float32.'
    )


def save(name: str, lines: list[str]) -> None:
    """Write and print a page."""
    PAGES.mkdir(parents=True, exist_ok=True)
    (PAGES / name).write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def documents() -> None:
    """Tokens per second of document mode and of windows at stride 50, on text without memorized paragraphs."""
    lines = ["# Whole documents against windows at stride 50", ""]
    lines += [stamp("python experiments/benchmarks/measure.py documents"), ""]
    lines += ["| model | precision | document mode, tokens/s | windows, tokens/s | ratio within a round |"]
    lines += ["|---|---|---|---|---|"]
    for name, (count, length) in READ.items():
        model, _ = models(name)
        tokens = np.random.default_rng(SEED).integers(0, model.cfg.d_vocab, (count, length))
        whole = Documents(tokens.reshape(-1), np.arange(count + 1) * length, np.arange(count), np.full(count, "random"))
        cut = np.lib.stride_tricks.sliding_window_view(tokens, LENGTH, axis=1)[:, ::50].reshape(-1, LENGTH)
        paras = mm.Paragraphs(torch.from_numpy(cut.copy()), PREFIX)
        for precision in ("float32", "bfloat16"):
            scorer = ExactScorer(model, paras.select(range(CALIBRATION)), method="cascade", precision=precision)
            speeds: tuple[list[float], list[float]] = ([], [])
            for _ in range(ROUNDS + 1):
                for kept, work in zip(
                    speeds,
                    (partial(find_spans, scorer, whole, SpanSettings()), partial(scorer.score, paras)),
                    strict=True,
                ):
                    started = time.perf_counter()
                    work()
                    kept.append(tokens.size / (time.perf_counter() - started))
            read, scored = (np.array(values[1:]) for values in speeds)
            lines.append(
                f"| {name} | {precision} | {np.median(read):,.0f} | {np.median(scored):,.0f} | "
                f"{np.median(read / scored):.2f} |"
            )
            print(lines[-1], flush=True)
    save("measure-documents.md", lines)


def perturbation() -> None:
    """Perturb every prefix position, compared with decoding each replacement as the paper's code does."""
    lines = ["# Perturbing every position of the prefix", ""]
    lines += [stamp("python experiments/benchmarks/measure.py perturb"), ""]
    lines += ["| model | perturbed prefixes/s | paper's code | speed-up within a round, median | lowest | highest |"]
    lines += ["|---|---|---|---|---|---|"]
    for name, count in PERTURBED.items():
        model, _ = models(name)
        paras = paragraphs(name, model, count, 1.0)
        few = paras.tokens[:1].repeat(PREFIX, 1)
        few[range(PREFIX), range(PREFIX)] = 1
        ours, theirs = [], []
        for _ in range(ROUNDS):
            started = time.perf_counter()
            mm.perturb_prefix(model, paras)
            ours.append(count * PREFIX / (time.perf_counter() - started))
            started = time.perf_counter()
            hooked_way(model, few)
            theirs.append(PREFIX / (time.perf_counter() - started))
            print(f"{name}  {ours[-1]:.1f}/s against {theirs[-1]:.2f}/s", flush=True)
        ratios = np.array(ours) / np.array(theirs)
        lines.append(
            f"| {name}, {count} paragraphs | {np.median(ours):.1f} | {np.median(theirs):.2f} | "
            f"{np.median(ratios):.1f} | {ratios.min():.1f} | {ratios.max():.1f} |"
        )
    lines += [
        "",
        "Target: at least 8 times as fast. EM is exact in both; the paper's code computes neither match nor a profile "
        "by position.",
    ]
    save("measure-perturb.md", lines)


def scan_memory() -> None:
    """Peak memory of the command on a corpus and on one ten times as long."""
    lines = ["# Memory of a scan against the length of its corpus", ""]
    lines += [stamp("python experiments/benchmarks/measure.py memory"), ""]
    lines += ["| documents of 100 random tokens | peak memory, MB |", "|---|---|"]
    rng = np.random.default_rng(SEED)
    peaks = []
    for count in (4_000, 40_000):
        with tempfile.TemporaryDirectory() as folder:
            ids = Path(folder) / "ids.npy"
            np.save(ids, rng.integers(0, 4096, (count, LENGTH), dtype=np.uint16))
            code = (
                "import pathlib, sys; from mechmem.cli import app\n"
                "try: app(sys.argv[1:])\n"
                # Not getrusage: its peak is that of the parent where this is higher.
                "finally: print('PEAK', pathlib.Path('/proc/self/status').read_text().split('VmHWM:')[1])"
            )
            options = ["scan", "--corpus", str(ids), "--out", f"{folder}/out.parquet", "--method", "cascade"]
            answer = subprocess.run([sys.executable, "-c", code, *options], capture_output=True, text=True, check=True)
        peaks.append(int(answer.stdout.split("PEAK")[1].split()[0]) / 1000)
        lines.append(f"| {count:,} | {peaks[-1]:.0f} |")
    lines += ["", f"Ten times the corpus takes {peaks[1] / peaks[0]:.3f} times the memory; target: at most 1.05."]
    save("measure-memory.md", lines)


if __name__ == "__main__":
    special = {"memory": scan_memory, "perturb": perturbation, "documents": documents}
    for chosen in sys.argv[1:] or ["bundled", "125m", "perturb", "documents", "memory"]:
        special[chosen]() if chosen in special else measure(chosen)
