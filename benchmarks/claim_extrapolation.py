"""A loss curve drawn on to where nobody went. What comes of it is marked as that wherever it is said."""

import math

import numpy as np

from benchmarks.claim_evidence import NotThere
from jaxgpt.curves import Run

_BLOCK, _RESAMPLES = 10, 2000


def power_law(run: Run, tokens: float) -> dict:
    """A straight line through the logarithms of tokens and training loss, drawn on to `tokens`.

    It is fitted to the steps from a fifth of the run to where the learning rate begins to fall. The interval is that of
    a bootstrap over blocks of ten residuals: it holds how badly the line is known, not that a line is wrong.

    Raises:
      NotThere: there are too few such steps.
    """
    schedule = run.config["recipe"]["schedule"]
    steady = (run.train.step > schedule["steps"] / 5) & (run.train.step <= schedule["steps"] - schedule["warmdown"])
    of_fit = run.train.tokens[steady]
    x, y = np.log(of_fit), np.log(run.train.loss[steady])
    if len(x) < 3 * _BLOCK:
        raise NotThere(f"{run.name} has {len(x)} steps of a steady learning rate, too few to fit")
    slope, start = np.polyfit(x, y, 1)
    residuals = y - (start + slope * x)
    drawn = np.random.default_rng(0).integers(len(x) - _BLOCK + 1, size=(_RESAMPLES, math.ceil(len(x) / _BLOCK)))
    resampled = residuals[drawn[:, :, None] + np.arange(_BLOCK)].reshape(_RESAMPLES, -1)[:, : len(x)]
    centred = x - x.mean()
    slopes = slope + resampled @ centred / (centred @ centred)
    ends = (start + slope * x).mean() + resampled.mean(axis=1) + slopes * (math.log(tokens) - x.mean())
    low, high = np.exp(np.quantile(ends, [0.025, 0.975]))
    return {
        "loss": float(np.exp(start + slope * math.log(tokens))),
        "interval": [float(low), float(high)],
        "tokens": int(tokens),
        "how": (
            f"EXTRAPOLATION, not a measurement: loss = c tokens^{slope:.4f}, fitted to {len(x)} steps of {run.name} "
            f"from {of_fit[0]:,} to {of_fit[-1]:,} tokens and drawn on {tokens / of_fit[-1]:.0f} times as far, on a "
            "text whose losses aren't FineWeb's; a power law without a floor falls too low, one without the learning "
            "rate's fall stays too high"
        ),
    }
