"""The model: loading, exporting, naming its parts. The only package that imports transformer_lens."""
