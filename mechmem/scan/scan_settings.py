"""Everything that decides what a scan writes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from mechmem.data.bounds import Count, Size, check_fields
from mechmem.data.errors import InputError
from mechmem.data.windows import WindowSettings
from mechmem.measure.exact import Method, Precision, check_method
from mechmem.scan.spans import SpanSettings


@dataclass(frozen=True)
class ScanSettings:
    """Everything that decides the rows of a scan, and how the work is done.

    Work that was begun with other settings is refused, except for `strict`, `shard_tokens` and `batch_size`, which no
    row depends on: EM is exact, and the other scores are the same to the rounding of float32. So a scan that ran out of
    memory goes on with smaller batches.

    Attributes:
        model: hub name, folder or "bundled".
        corpus: whatever `open_corpus` reads, or a `.parquet` with a column `tokens` (or a folder of such), whose rows
            and columns are kept as they are; None for the bundled paragraphs.
        windows: how text is cut, filtered and sampled. Of a parquet of rows, only `limit` and `seed` count, and
            lengths that it has not are refused.
        method: "full" scores every column of every paragraph; "cascade" stops where a paragraph is certainly not
            memorized: EM is the same, but NLL, match and edit distance are missing (NaN) where it stopped.
        precision: "bfloat16" goes with the cascade: what passes and what is uncertain is confirmed in float32.
        edit_distance: decode greedily what is not memorized, as far as it is scored in full.
        min_em: write no paragraph with a lower EM; the manifest counts them.
        spans: read whole documents and write memorized spans at any offset instead of windows (document mode, see
            `find_spans`); stride, filters, limit and `min_em` are for windows alone.
        run: paragraphs that share this many consecutive tokens are in one cluster.
        strict: stop at the first record that cannot be read.
        column: the field that holds the text.
        split: of a dataset.
        shard_tokens: tokens of one part of the work: what a kill can lose, and what one worker takes at a time. Work
            that was begun goes on in the parts that it has.
        batch_size: paragraphs of one forward; None: what stays near the cache.

    Raises:
        InputError: a value out of its range.
    """

    model: str = "bundled"
    corpus: str | None = None
    windows: WindowSettings = field(default_factory=WindowSettings)
    method: Method = "full"
    precision: Precision = "float32"
    edit_distance: bool = True
    min_em: Size = 0
    spans: SpanSettings | None = None
    run: Count = 25
    strict: bool = False
    column: str = "text"
    split: str = "train"
    shard_tokens: Count = 200_000
    batch_size: Count | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        check_method(self.method, self.precision)
        if self.spans is not None and self.windows != WindowSettings(seed=self.windows.seed):
            raise InputError(
                "got settings of windows for document mode, which examines every offset of every document; leave out "
                "stride, filters and limit"
            )
        if not 1 <= self.run <= self.windows.length:
            raise InputError(f"got run {self.run}; need 1 to {self.windows.length}, the paragraphs' length")
        if self.shard_tokens < self.windows.length:
            raise InputError(
                f"got {self.shard_tokens} as shard_tokens; need at least the paragraphs' {self.windows.length} tokens"
            )
        if self.corpus is None and self.model != "bundled":
            raise InputError(
                f"got no corpus for {self.model}; the bundled paragraphs are token ids of the bundled model alone: "
                "name text or tokens that the model was trained on (corpus=, or --corpus)"
            )

    @property
    def doing(self) -> str:
        """What is counted while it works."""
        return "scoring paragraphs" if self.spans is None else "reading tokens"

    def described(self) -> dict[str, Any]:
        """The settings as JSON has them."""
        values = asdict(self)
        values["windows"]["keywords"] = list(self.windows.keywords)
        return values
