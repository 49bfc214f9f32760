from inspect import unwrap

import pytest

from mechmem.data.argument_checks import check_sets
from mechmem.data.counts import cluster
from mechmem.data.errors import InputError
from mechmem.measure.scores import split
from mechmem.stats.matching import match

# Unwrapped: without the tests' own check of annotations, as a user calls them.
CALLS = {
    "cluster": (lambda wrong, _: unwrap(cluster)(wrong), "got list as paragraphs"),
    "split": (lambda wrong, paragraphs: unwrap(split)(wrong, paragraphs), "got list as paragraphs"),
    "split, scores": (
        lambda wrong, paragraphs: unwrap(split)(paragraphs, wrong),
        "got list as scores; need the Dataset",
    ),
    "match": (lambda wrong, paragraphs: unwrap(match)(paragraphs, wrong), "got list as candidates"),
    "sets": (lambda wrong, _: check_sets("sets", wrong), "got list as sets; need a dict from names to Paragraphs"),
    "in sets": (lambda wrong, _: check_sets("sets", {"a": wrong}), r"got list as sets\['a'\]; need Paragraphs"),
}


@pytest.mark.parametrize("name", CALLS)
def test_other_kinds_are_refused_with_a_way_on(name, tiny_paragraphs):
    call, sentence = CALLS[name]
    with pytest.raises(InputError, match=sentence):
        call(["text"], tiny_paragraphs)
