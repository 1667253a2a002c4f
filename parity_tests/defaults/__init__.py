"""What PyTorch and JAX do by default where ports go wrong, and what each recipe does: `docs/defaults.md`, generated.

`detail` says what an entry is; `model`, `muon`, `optimizer` and `training` hold the entries; `page` makes Markdown of
them. `preamble` is what their lines of Python start from.
"""
