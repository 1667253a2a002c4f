"""From a compiled step's collectives, stated link speeds and measured rates to seconds. No framework is imported."""

from dataclasses import dataclass

from jaxgpt.rates import Rates, step_seconds
from jaxgpt.recipes import Recipe
from launch.chips import Chip
from launch.collectives import Collective


@dataclass(frozen=True)
class Estimate:
    """Seconds of a step, by prediction."""

    work: dict[str, float]
    """By kind, see `jaxgpt.rates.step_seconds`."""
    exposed: float
    """Of collectives that the compiled program waits for."""
    hidden: float
    """Of those with products scheduled meanwhile."""

    @property
    def step(self) -> float:
        """What the program as compiled would take."""
        return sum(self.work.values()) + self.exposed

    @property
    def least(self) -> float:
        """If all that the devices say were hidden."""
        return sum(self.work.values())

    @property
    def most(self) -> float:
        """If nothing were."""
        return self.step + self.hidden


def estimate(recipe: Recipe, devices: int, chip: Chip, rates: Rates, found: list[Collective]) -> Estimate:
    """Seconds of a recipe's step on so many chips whose program has these collectives."""
    seconds = [(each, each.times * collective_seconds(each, chip, each.devices or devices)) for each in found]
    return Estimate(
        work=step_seconds(recipe, devices, rates),
        exposed=sum(s for each, s in seconds if each.waits or not each.during),
        hidden=sum(s for each, s in seconds if not each.waits and each.during),
    )


def collective_seconds(each: Collective, chip: Chip, devices: int) -> float:
    """Seconds of one exchange at the stated speeds, without what starting it takes: the least that it can be.

    Within a host each of n devices sends (n - 1) / n of the bytes once in a gather or scatter and twice in a sum, as in
    a ring (Patarasuk and Yuan 2009, doi 10.1016/j.jpdc.2008.09.002). Between h hosts, each device does that once more
    with the n-th part that is its own.
    """
    hosts = -(-devices // chip.host) if chip.network else 1
    inside = -(-devices // hosts)
    across = chip.network or chip.link
    if not chip.link:
        return 0.0
    if each.kind == "collective-permute":
        return each.bytes / (across if hosts > 1 else chip.link)
    if each.kind == "all-to-all":
        return each.bytes * ((inside - 1) / devices / chip.link + (devices - inside) / devices / across)
    once = each.bytes * (inside - 1) / inside / chip.link + each.bytes / inside * (hosts - 1) / hosts / across
    return 2 * once if each.kind == "all-reduce" else once


def expected_collectives(recipe: Recipe, devices: int) -> list[Collective]:
    """What a data-parallel step has to exchange: all gradients summed, Muon's updates gathered, each waited for.

    For a prediction without a compiled program. Gradients are float32, gathered updates of Newton-Schulz's dtype.
    """
    if devices == 1:
        return []
    model, optimizer = recipe.model, recipe.optimizer
    hidden = sum(s[0] * s[1] for name, s in model.shapes.items() if name.startswith("h.") and len(s) == 2)
    update = {"bfloat16": 2, "float32": 4, "float64": 8}[optimizer.newton_schulz_dtype]
    said = [("all-reduce", 4 * model.parameters)] + [("all-gather", update * hidden)] * (optimizer.kind == "muon")
    return [Collective(kind, size, devices, 1, "", True, 0, 0, 0) for kind, size in said]
