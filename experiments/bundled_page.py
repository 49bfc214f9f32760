"""The page of the bundled model: its tables and its text."""

from typing import Any

import pandas as pd
import torch
from outputs import stamp, write_page


def kinds_of(table: Any) -> pd.DataFrame:
    """Counts and EM by kind of text."""
    never, by_kind = table[table.seen == "never seen"].groupby("source"), table.groupby("source")
    return pd.DataFrame(
        {
            "shipped": by_kind.size(),
            "EM 50": table[table.em == 50].groupby("source").size(),
            "never seen": never.size(),
            "never seen, mean EM": never.em.mean(),
            "never seen, most EM": never.em.max(),
        }
    ).fillna(0)


def rarity(trained: Any) -> str:
    """How often rare paragraphs are reproduced, by how often their template occurs."""
    rare = trained[trained["count"] <= 3]
    frequent = rare.cluster_count >= 32
    return (
        f"Of the {len(rare)} shipped paragraphs that occur one to three times, {frequent.sum()} belong to a template "
        f"that occurs 32 times or more, and {(rare[frequent].em == 50).mean():.0%} of these are reproduced exactly; of "
        f"the other {(~frequent).sum()} it is {(rare[~frequent].em == 50).mean():.1%}."
    )


def write(settings: Any, training: dict[str, Any], claims: list[Any], curve: pd.DataFrame, table: Any) -> None:
    """The page of docs.

    Args:
        settings: of the run.
        training: the record of training.
        claims: the requirements, and whether the model meets them.
        curve: EM by range of counts.
        table: every paragraph with its EM.
    """
    correlation = next(claim for claim in claims if claim.name.startswith("Spearman of EM"))
    known = training["settings"]
    lines = [
        "# The bundled model",
        "",
        f"The bundled model is a GPT-Neo with {known['n_layers']} layers (global and local attention alternate; the "
        f"local window is {known['window_size']}), width {known['d_model']}, {known['n_heads']} heads, a "
        f"byte-level BPE vocabulary of {known['d_vocab']:,} tokens and a context of {known['n_ctx']}. It was "
        f"trained for one pass over {training['tokens_seen']:,} tokens of a synthetic corpus "
        "(`mechmem/synthetic/generator.py`) in which the number of occurrences of every document is known. It "
        "memorized the frequent documents, as language models do.",
        "",
        "Use it to test methods: it is small enough for a laptop, nothing was planted in it, and the true counts of "
        "its training text are shipped with it. It is not a model of English: a grammar and invented words produced "
        "its training text. Results on it need not hold for GPT-Neo 125M or any other model.",
        "",
        "## What it memorized",
        "",
        "| measure | value | required |",
        "|---|---|---|",
        *[f"| {claim.name} | {claim.text} | {claim.need} |" for claim in claims],
        "",
        "![EM against true repetition count](bundled-model.png)",
        "",
        f"EM rises with the true count: over the paragraphs in the training text, Spearman's correlation is "
        f"{correlation.text} (95 % bootstrap interval over clusters). A rare paragraph can still be memorized. "
        f"{rarity(table[table.seen == 'trained'])}",
        "",
        markdown(curve.rename_axis("true count").reset_index()),
        "",
        "EM 50 is the share of paragraphs reproduced exactly; q10 and q90 are the 10 % and 90 % quantiles of EM; NLL "
        "is in nats per token.",
        "",
        "## Kinds",
        "",
        markdown(kinds_of(table).rename_axis("kind").reset_index()),
        "",
        "Never-seen paragraphs are the first windows of documents whose templates do not occur in the training text. "
        "Their EM is what the grammar alone predicts.",
        "",
        "## How the paragraphs were chosen",
        "",
        "They were chosen before training, by true count alone. From the training documents come windows of 100 tokens "
        "at stride 100: a fixed number from each range of counts, at most 12 per cluster and range, and every window "
        "that occurs 128 times or more. From every unseen document comes the first window. `count` is the exact number "
        "of occurrences of the 100 tokens at any offset in the training text; `cluster` is the template; `seen` says "
        "whether the document, only its template, or neither was in the training text.",
        "",
        "## How it was trained",
        "",
        "`python experiments/train_bundled.py` trains it and resumes from its checkpoints; settings, seed, loss curve "
        "and versions are in `mechmem/assets/training.json`.",
        f"{training['steps']:,} steps of {known['batch']} x {known['n_ctx']} tokens, AdamW, peak learning rate "
        f"{known['learning_rate']}, {training['precision']}, {training['wall_seconds'] / 60:.0f} minutes on "
        f"{training['machine']} ({training['date']}); the shipped weights are rounded to float16.",
        "",
        f"Measured by {stamp('measure_bundled')}, torch {torch.__version__}, seed {settings.seed}.",
    ]
    write_page(settings.page, lines)


def markdown(table: pd.DataFrame) -> str:
    """A Markdown table with two decimals."""
    rows = [[f"{v:.2f}".rstrip("0").rstrip(".") if isinstance(v, float) else str(v) for v in row]
            for row in table.itertuples(index=False)]  # fmt: skip
    head = ["| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
    return "\n".join([*head, *("| " + " | ".join(row) + " |" for row in rows)])
