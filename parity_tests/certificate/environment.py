"""What a run of the ladder ran on: versions, devices, precision flags, the commit."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch", "numpy", "scipy", "pytest")


def environment(checkout: Path) -> dict:
    """Of this process; `checkout` is a folder of the git checkout.

    A framework that the run didn't load isn't loaded here: it computed nothing.
    """
    return {
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "devices": {"jaxgpt": _jax_devices(), "torch_ref": _torch_devices()},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "precision_flags": _precision_flags(),
        "git": _git(checkout),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _jax_devices() -> list[str]:
    jax = sys.modules.get("jax")
    return [f"{device.platform}: {device.device_kind}" for device in jax.devices()] if jax else []


def _torch_devices() -> list[str]:
    torch = sys.modules.get("torch")
    if not torch:
        return []
    cuda = torch.cuda
    return [f"cuda: {cuda.get_device_name(i)}" for i in range(cuda.device_count())] or ["cpu"]


def _precision_flags() -> dict[str, object]:
    flags: dict[str, object] = {"XLA_FLAGS": os.environ.get("XLA_FLAGS")}
    if jax := sys.modules.get("jax"):
        flags |= {name: getattr(jax.config, name) for name in ("jax_enable_x64", "jax_default_matmul_precision")}
    if torch := sys.modules.get("torch"):
        flags["torch float32 matmul precision"] = torch.get_float32_matmul_precision()
        flags["torch.backends.cuda.matmul.allow_tf32"] = torch.backends.cuda.matmul.allow_tf32
        flags["torch.backends.cudnn.allow_tf32"] = torch.backends.cudnn.allow_tf32
    return flags


def _git(checkout: Path) -> dict[str, object]:
    """The commit, and whether files differ from it; both None outside a checkout."""
    try:
        commit, changed = _output(checkout, "rev-parse", "HEAD"), _output(checkout, "status", "--porcelain")
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}
    return {"commit": commit, "dirty": bool(changed)}


def _output(checkout: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=checkout, check=True, capture_output=True, text=True, timeout=30)
    return done.stdout.strip()
