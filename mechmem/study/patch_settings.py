"""Everything that decides a patching experiment of a study, and the file that repeats it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mechmem.data.bounds import Count, Index, Share, check_fields
from mechmem.data.errors import InputError
from mechmem.study.config import apply_settings, described, read_config, setting_lines
from mechmem.study.settings import StudySettings

# Those of `mechmem.patch`, named here so that settings are checked without importing torch; a test compares them.
Site = Literal["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "q", "k", "v", "z", "pattern", "mlp_post"]
Where = Literal["each", "perturbed", "all"]
Metric = Literal["nll", "logit_difference", "kl", "em"]
Directions = Literal["noising", "denoising", "mean", "both"]
Attribution = Literal["gradient", "both_ends", "integrated"]
Scored = Literal["impact", "continuation"]
# Pairs that the study itself can make.
MADE = ("perturbed", "other")
PAIRS = 16
# Of the study's settings, those that decide which paragraphs there are.
STUDY = ("model", "corpus", "seed", "limit", "prefix_len", "continuation_len")


@dataclass(frozen=True)
class PatchSettings:
    """Everything that decides a patching experiment, beside its study.

    Attributes:
        site: what is patched: q, k, v, z or pattern of each head, mlp_post (neurons), or resid_pre, resid_mid,
            resid_post, attn_out, mlp_out.
        pos: each position a cell of its own; perturbed: each pair's perturbed token alone; all: all positions together.
        direction: noising runs the clean text with activations of the corrupt one, denoising the reverse; mean is one
            effect of both, with the sign of noising; both are two effects.
        metric: of the patched run: nll, logit_difference, kl or em.
        scored: impact (the first continuation token in which a pair differs) or continuation (all of it).
        pairs: perturbed (memorized paragraphs and their worst perturbations), other (memorized paragraphs and matched
            ones that are not), or a file that `read_pairs` reads.
        count: at most so many pairs; not set: 16, or all of a file.
        layers: patch these layers alone; not set: all.
        heads: patch these heads alone, such as "L1H2"; not set: all.
        attribute_first: patch exactly this share of the cells, those that attribution estimates highest; not set: all.
        attribute_method: how attribution estimates: gradient, both_ends or integrated; not set: the site's own.
        normalize: divide by the effect of replacing everything.

    Raises:
        InputError: a value that is out of range, or two that contradict each other.
    """

    site: Site = "z"
    pos: Where = "each"
    direction: Directions = "both"
    metric: Metric = "nll"
    scored: Scored = "impact"
    pairs: str = "perturbed"
    count: Count | None = None
    layers: tuple[Index, ...] | None = None
    heads: tuple[str, ...] | None = None
    attribute_first: Share | None = None
    attribute_method: Attribution | None = None
    normalize: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        if self.layers is not None and self.heads is not None:
            raise InputError("got layers and heads; need one of them: a head names its layer")
        for head in self.heads or ():
            if not re.fullmatch(r"L\d+H\d+", head):
                raise InputError(f"got the head {head!r}; need names such as L1H2,L3H0 (both numbers from zero)")
        if self.heads is not None and self.site not in ("q", "k", "v", "z", "pattern"):
            raise InputError(f"got heads for the site {self.site!r}, which has none; need q, k, v, z or pattern")
        self._check_attribution()
        if self.direction == "mean" and self.metric == "kl":
            raise InputError(
                "got the direction mean with the metric kl, which compares with another unpatched run in each "
                "direction; use both, or another metric"
            )
        if self.pos == "perturbed" and self.pairs == "other":
            raise InputError(
                "got pos 'perturbed' with pairs 'other', which differ everywhere; need perturbed pairs, or pos each"
            )

    def _check_attribution(self) -> None:
        if self.attribute_first is None:
            if self.attribute_method is not None:
                raise InputError(
                    f"got attribute_method {self.attribute_method!r} without attribute_first, the share of the cells "
                    "that it chooses; need both, or none to patch all cells"
                )
        elif self.metric == "em":
            raise InputError(
                "got attribute_first with the metric em, which has no gradient; use nll or logit_difference, or patch "
                "all cells"
            )
        elif self.metric == "kl" and self.attribute_method == "gradient":
            raise InputError(
                "got attribute_method 'gradient' with the metric kl, which has no gradient at the unpatched run; use "
                "both_ends or integrated, or another metric"
            )

    @property
    def file(self) -> Path | None:
        """The file of pairs, if they are not made from the study."""
        return None if self.pairs in MADE else Path(self.pairs)

    @property
    def name(self) -> str:
        """What the experiment is called where nobody names it."""
        return f"{self.pairs if self.file is None else self.file.stem}-{self.site}"


def check_experiment_name(name: str) -> None:
    """Refuse a name that cannot be one of files.

    Raises:
        InputError: slashes, a dot at the beginning, or nothing.
    """
    if not name or Path(name).name != name or name.startswith("."):
        raise InputError(f"got the experiment's name {name!r}; need a plain name such as 'v-noising' without slashes")


def parsed_layers(text: str) -> tuple[int, ...]:
    """`"0-3,5"` -> (0, 1, 2, 3, 5).

    Raises:
        InputError: something else.
    """
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,6})(?:-(\d{1,6}))?\s*", part)
        last = None if match is None else int(match[2] or match[1])
        if match is None or last is None or last < int(match[1]):
            raise InputError(f"got the layers {text!r}; need numbers from zero and ranges, such as 0-3,5")
        found += range(int(match[1]), last + 1)
    return tuple(dict.fromkeys(found))


def experiment_text(settings: PatchSettings, study: StudySettings) -> str:
    """An experiment as TOML, which `read_experiment` reads."""
    values = described(study)
    lines = ["# A patching experiment. Repeat it with: mechmem patch --from-file FILE --out STUDY", "", "[study]"]
    for name in STUDY:
        lines += [line for line in setting_lines(study) if line.startswith(f"{name} = ")]
    lines += [f"# {name} = (not set)" for name in STUDY if values[name] is None]
    return "\n".join([*lines, "", "[patch]", *setting_lines(settings)])


def read_experiment(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a file says of the study (model, corpus, seed, limit, lengths) and of the experiment.

    Raises:
        InputError: it cannot be read, holds another table or setting, or a value that a setting cannot have.
    """
    values = read_config(path)
    if set(values) - {"study", "patch"} or not all(isinstance(table, Mapping) for table in values.values()):
        raise InputError(
            f"{path}: holds {', '.join(values) or 'nothing'}; need the tables [study] and [patch] alone, as `mechmem "
            "patch` writes them beside its results"
        )
    study, patch = dict(values.get("study", {})), dict(values.get("patch", {}))
    if unknown := sorted(study.keys() - set(STUDY)):
        raise InputError(f"{path}: holds {', '.join(unknown)} in [study]; need some of {', '.join(STUDY)}")
    try:
        apply_settings(StudySettings(), study)
        apply_settings(PatchSettings(), patch)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return study, patch
