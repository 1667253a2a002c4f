"""GPT-2 124M with Muon in JAX: the second opinion on a recipe that was published in PyTorch."""

__version__ = "0.1.0"
