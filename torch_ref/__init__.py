"""The PyTorch reference: `python -m torch_ref.train`. File for file the twin of jaxgpt; never imports JAX."""
