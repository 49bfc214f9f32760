"""Texts that would act if they were not escaped, and a tokenizer that gives any texts."""

import torch

import mechmem as mm

NASTY = [
    "</script>",
    "<img/src=x onerror=window.pwned=1>",
    "{{7*7}}",
    "שלום",
    "😀",
    "x" * 2000,
    "\u2028",
    "\0",
    "\u202e",
]


class Says:
    """A tokenizer of given texts."""

    def __init__(self, texts):
        self.texts = texts

    def decode(self, ids):
        return self.texts[ids[0]]

    def convert_ids_to_tokens(self, token):
        return self.texts[token]


def text_of(texts, prefix_len=2):
    """A paragraph of these texts, one a token, and its tokenizer."""
    return mm.Paragraphs(torch.arange(len(texts))[None], prefix_len), Says(texts)
