"""A model as a monitor reads it, whichever library it is of."""

from __future__ import annotations

from mechmem.detect.monitor.causal_source import CausalSource
from mechmem.detect.monitor.hooked_source import HookedSource

# Both have: model, n_ctx, layers, heads, neurons (sizes), device, identity, readout, hooks, tokenizer, ends.
Source = CausalSource | HookedSource
