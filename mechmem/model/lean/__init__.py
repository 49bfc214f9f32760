"""The forward without hooks: plain matrix products for scoring, tracing, patching and training."""
