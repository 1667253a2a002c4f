"""`python -m benchmarks.optimizer`: a run's recipe made again from its folder, the measurement, the report."""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from benchmarks import optimizer, optimizer_report, step_cost
from benchmarks.optimizer_report import BytesAParameter, Measured, StateBytes
from jaxgpt.errors import BadInput
from jaxgpt.recipes import RECIPES, Recipe, named, precision
from jaxgpt.recorded import recorded
from parity_tests.runs import BLUE, GREEN, VERMILION, colours, lines, tables


def small(name: str) -> Recipe:
    """A tiny recipe with one layer, whose SOAP and Shampoo recompute at every second update."""
    recipe = named(name)
    model = dataclasses.replace(recipe.model, layers=1, width=16, heads=2, context=8, vocab=32, token_ids=32)
    changed = dataclasses.replace(recipe.optimizer, precondition_every=2)
    data = dataclasses.replace(recipe.data, sequences=4, micro_batch=2)
    return dataclasses.replace(recipe, model=model, optimizer=changed, data=data)


def config_of(recipe: Recipe, trainer: str = "jaxgpt", devices: int = 1) -> dict:
    """What a trainer writes into config.json, as JSON gives it back."""
    exactly = precision(recipe, None, attention="exact")
    config = {
        "trainer": trainer,
        "recipe": dataclasses.asdict(recipe),
        "precision": dataclasses.asdict(exactly),
        "micro_batch": 2,
        "devices": ["cpu"] * devices,
    }
    return json.loads(json.dumps(config))


def write_run(folder: Path, recipe: Recipe, trainer: str = "jaxgpt", loss: float = 2.0) -> str:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config_of(recipe, trainer)))
    metrics = lines(train=[5, 4, 3, loss], val=[6, 4, loss], every=2)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    return str(folder)


def made_up(run: str, trainer: str = "jaxgpt", recipe: str = "tiny-soap", kind: str = "soap") -> Measured:
    """Figures of a run that nobody measured."""
    preconditioned = kind in ("soap", "shampoo")
    return Measured(
        run=run,
        trainer=trainer,
        recipe=recipe,
        kind=kind,
        precondition_every=10 if preconditioned else None,
        step_ms=200.0,
        update_ms=50.0,
        share=0.25,
        recompute_ms=300.0 if preconditioned else None,
        bytes=StateBytes(30 * 2**20, 40 * 2**20),
        per_parameter_bytes=BytesAParameter(30.0, 20.0),
        devices=("NVIDIA H100",),
        versions={"torch": "2.13.0"},
        final_val_loss=9.0,
        tokens=1,
        train_time_s=None,
    )


def write_measured(file: Path, *measured: Measured) -> str:
    file.write_text(json.dumps([dataclasses.asdict(each) for each in measured]))
    return str(file)


def refused(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as end:
        optimizer.main(list(arguments))
    said = capsys.readouterr()
    assert (end.value.code, said.err.count("\n")) == (2, 1)
    return said.err


# A run's recipe, made again


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_and_its_precision_come_back_from_json(name):
    recipe = named(name)
    was = recorded(config_of(recipe), "config.json")
    assert was.recipe == recipe
    assert was.precision == precision(recipe, None, attention="exact")
    assert (was.trainer, was.micro_batch, was.devices) == ("jaxgpt", 2, 1)


def changed(config: dict, keys: str, value: object) -> dict:
    """`config` with the value at the dotted keys replaced, or taken out where it is `...`."""
    *outer, last = keys.split(".")
    inner = config
    for key in outer:
        inner = inner[key]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return config


MISFITS = {
    "another trainer": ("trainer", "megatron", "trainer is 'megatron'"),
    "no devices": ("devices", [], "devices is []"),
    "no recipe": ("recipe", "tiny", "recipe is 'tiny', not an object"),
    "a field missing": ("recipe.model.norm", ..., "recipe.model.norm is missing"),
    "a field too many": ("recipe.model.dropout", 0.1, "recipe.model.dropout is unknown here"),
    "a text for a number": ("recipe.model.layers", "4", "recipe.model.layers is '4', not a whole number"),
    "true for a number": ("recipe.model.layers", True, "recipe.model.layers is True, not a whole number"),
    "a number for true": ("recipe.optimizer.distributed", 1, "recipe.optimizer.distributed is 1, not true or false"),
    "an unknown variant": ("recipe.optimizer.kind", "lion", "recipe.optimizer.kind is 'lion', not one of muon"),
    "a list too short": ("recipe.optimizer.betas", [0.9], "recipe.optimizer.betas is [0.9], not a list of 2"),
    "nothing for a number": ("recipe.schedule.steps", None, "recipe.schedule.steps is missing, not a whole number"),
    "a contradiction": ("recipe.model.heads", 3, "model.width 128 over model.heads 3"),
    "an unknown dtype": ("precision.compute", "int8", "precision.compute is 'int8'"),
    "a micro-batch that divides nothing": ("micro_batch", 3, "micro_batch is 3 with 1 devices"),
}


@pytest.mark.parametrize(("keys", "value", "says"), MISFITS.values(), ids=MISFITS)
def test_a_config_that_is_none_of_ours_is_refused(keys, value, says):
    with pytest.raises(BadInput) as refusal:
        recorded(changed(config_of(named("tiny")), keys, value), "a/config.json")
    assert str(refusal.value).startswith("a/config.json")
    assert says in str(refusal.value)


# Measuring


class Scripted:
    """A program whose calls take so many milliseconds: 5 an update and 20 a step, and 45 more in each tenth call."""

    def __init__(self, monkeypatch, every: int | None = 10):
        self.calls, self.every, self.took = "", every, 0.0
        monkeypatch.setattr(step_cost, "_milliseconds", self.time)

    def call(self, kind: str, milliseconds: float) -> None:
        self.calls += kind
        # SOAP's first call only makes its basis: calls 11, 21, ... renew it
        renews = self.every and len(self.calls) > 1 and len(self.calls) % self.every == 1
        self.took = milliseconds + (45 if renews else 0)

    def time(self, call) -> float:
        call()
        return self.took

    def program(self) -> step_cost.Program:
        step, update = (lambda: self.call("s", 20.0)), (lambda: self.call("u", 5.0))
        return step_cost.Program(step, update, {"hidden": 1, "all": 2}, ["cpu"], {})


def test_a_recomputation_counts_once_a_period(monkeypatch):
    costs = step_cost.measure(Scripted(monkeypatch).program(), 10, steps=10)
    assert (costs["step_ms"], costs["update_ms"]) == (20 + 4.5, 5 + 4.5)
    assert costs["share"] == 9.5 / 24.5
    assert costs["recompute_ms"] == 45


def test_the_first_recomputation_goes_unmeasured(monkeypatch):
    scripted = Scripted(monkeypatch)
    step_cost.measure(scripted.program(), 10, steps=10)
    assert scripted.calls == "s" + 11 * "u" + 10 * "s" + 10 * "u"


@pytest.mark.parametrize(("steps", "periods"), [(1, 1), (10, 1), (11, 2), (20, 2)])
def test_steps_are_rounded_up_to_whole_periods(monkeypatch, steps, periods):
    scripted = Scripted(monkeypatch)
    step_cost.measure(scripted.program(), 10, steps)
    assert scripted.calls[12:] == periods * (10 * "s" + 10 * "u")


def test_without_a_period_steps_and_updates_alternate_and_medians_are_taken(monkeypatch):
    scripted = Scripted(monkeypatch, every=7)  # stray slow calls
    costs = step_cost.measure(scripted.program(), None, steps=10)
    assert scripted.calls == "suu" + 10 * "su"
    assert (costs["step_ms"], costs["update_ms"], costs["recompute_ms"]) == (20, 5, None)


@pytest.mark.parametrize(("devices", "micro_batch"), [(1, 2), (2, 2), (4, 1)])
def test_on_other_devices_the_micro_batch_still_divides(devices, micro_batch):
    assert step_cost.micro_batch_on(recorded(config_of(small("tiny-soap")), ""), devices) == micro_batch


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """The report on one run of each trainer, really measured."""
    folder = tmp_path_factory.mktemp("measured")
    runs = [write_run(folder / trainer, small("tiny-soap"), trainer) for trainer in ("jaxgpt", "torch_ref")]
    optimizer.main([*runs, "--out", str(folder / "report"), "--steps", "2"])
    return folder / "report"


def figures(report: Path) -> list[dict]:
    return json.loads((report / "optimizers.json").read_text())


@pytest.mark.parametrize("i", [0, 1], ids=["jaxgpt", "torch_ref"])
def test_a_run_is_measured_in_its_framework(report, i):
    entry = figures(report)[i]
    assert (entry["run"], entry["trainer"]) == (("jaxgpt", "torch_ref")[i],) * 2
    assert (entry["recipe"], entry["kind"], entry["precondition_every"]) == ("tiny-soap", "soap", 2)
    assert (("jax", "torch")[i] in entry["versions"], len(entry["devices"])) == (True, 1)
    assert entry["share"] == entry["update_ms"] / entry["step_ms"]
    assert 0 < entry["update_ms"] < math.inf
    assert entry["recompute_ms"] >= 0


@pytest.mark.parametrize("i", [0, 1], ids=["jaxgpt", "torch_ref"])
def test_state_is_that_of_soaps_definition(report, i):
    recipe = small("tiny-soap")
    matrices = [s for name, s in recipe.model.shapes.items() if name.startswith("h.")]
    hidden = sum(4 * (2 * r * c + 2 * (r * r + c * c)) for r, c in matrices)
    entry = figures(report)[i]
    counters = 64  # of steps, which the frameworks keep differently
    assert hidden <= entry["bytes"]["hidden"] <= hidden + counters
    embedding = 2 * 4 * recipe.model.vocab * recipe.model.width
    assert hidden + embedding <= entry["bytes"]["all"] <= hidden + embedding + counters
    parameters = sum(r * c for r, c in matrices)
    assert entry["per_parameter_bytes"]["hidden"] == entry["bytes"]["hidden"] / parameters


def test_what_the_runs_reached_comes_from_their_folders(report):
    assert [(e["final_val_loss"], e["tokens"], e["train_time_s"]) for e in figures(report)] == [
        (2.0, 4 * 524_288, 8.0)
    ] * 2


def test_the_report_holds_costs_results_versions_and_its_command(report):
    text = (report / "optimizers.md").read_text()
    costs, results, versions = tables(text)
    assert [row["framework"] for row in costs] == ["JAX", "PyTorch"]
    assert [row["final val loss"] for row in results] == ["2.0000", "2.0000"]
    assert "jax" in versions[0]["versions"]
    assert f"python -m benchmarks.optimizer {report.parent}/jaxgpt" in text


def test_the_picture_is_drawn(report):
    with Image.open(report / "optimizers.png") as picture:
        assert picture.size[0] == 1800
    assert GREEN in colours((report / "optimizers.png").read_bytes())  # SOAP's


def test_a_figure_taken_before_is_not_measured_again(report, tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("measured"))
    runs = [str(report.parent / name) for name in ("torch_ref", "jaxgpt")]
    optimizer.main([*runs, "--out", str(tmp_path / "out"), "--measured", str(report / "optimizers.json")])
    assert figures(tmp_path / "out") == figures(report)[::-1]


# The program


@pytest.fixture
def two(tmp_path) -> list[str]:
    return [write_run(tmp_path / "soap", small("tiny-soap")), write_run(tmp_path / "muon", small("tiny"), loss=2.5)]


MUON = ("muon", "jaxgpt", "tiny", "muon")


def test_figures_of_several_files_are_put_together(tmp_path, two):
    files = [write_measured(tmp_path / "1.json", made_up(*MUON)), write_measured(tmp_path / "2.json", made_up("soap"))]
    optimizer.main([*two, "--out", str(tmp_path / "out"), "--measured", *files])
    assert [(e["run"], e["step_ms"], e["final_val_loss"]) for e in figures(tmp_path / "out")] == [
        ("soap", 200.0, 2.0),
        ("muon", 200.0, 2.5),
    ]


def test_each_optimiser_has_its_colour(tmp_path, two):
    measured = write_measured(tmp_path / "1.json", made_up(*MUON), made_up("soap"))
    optimizer.main([*two, "--out", str(tmp_path / "out"), "--measured", measured])
    seen = colours((tmp_path / "out" / "optimizers.png").read_bytes())
    assert {BLUE, GREEN} <= seen
    assert VERMILION not in seen


def test_the_frameworks_are_told_apart_by_dashes_and_names():
    both = [made_up("a"), made_up("b", "torch_ref")]
    assert [(look["color"], look["linestyle"]) for look in optimizer_report.styles(both)] == [
        ("#009E73", "-"),
        ("#009E73", "--"),
    ]
    assert optimizer_report.names(both) == ["SOAP, JAX", "SOAP, PyTorch"]


def test_two_runs_of_one_optimiser_and_framework_are_told_apart_by_colour_and_run():
    both = [made_up("a"), made_up("b")]
    assert len({look["color"] for look in optimizer_report.styles(both)}) == 2
    assert optimizer_report.names(both) == ["a", "b"]


def test_an_earlier_report_is_replaced(tmp_path, two):
    measured = write_measured(tmp_path / "1.json", made_up(*MUON), made_up("soap"))
    for runs in (two, two[:1]):
        optimizer.main([*runs, "--out", str(tmp_path / "out"), "--measured", measured])
    assert [entry["run"] for entry in figures(tmp_path / "out")] == ["soap"]


def test_a_folder_with_anything_else_in_it_is_left_as_it_is(tmp_path, capsys, two):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "optimizers.md").write_text("# Mine\n")
    assert "which is no report of ours" in refused(capsys, *two, "--out", str(tmp_path / "out"))
    assert (tmp_path / "out" / "optimizers.md").read_text() == "# Mine\n"


def test_what_was_measured_is_kept_when_a_later_run_is_refused(tmp_path, capsys, two, monkeypatch):
    costs = {key: value for key, value in dataclasses.asdict(made_up("")).items() if key in ("step_ms", "update_ms")}
    costs |= {"share": 0.25, "recompute_ms": None, "bytes": {"hidden": 1, "all": 2}, "devices": ["cpu"], "versions": {}}
    ends = iter(
        [
            SimpleNamespace(returncode=0, stdout=json.dumps(costs) + "\n", stderr=""),
            SimpleNamespace(returncode=2, stdout="", stderr="noise\nerror: --mesh 8: this machine has 1\n"),
        ]
    )
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: next(ends))
    assert refused(capsys, *two, "--out", str(tmp_path / "out")) == "error: --mesh 8: this machine has 1\n"
    assert [entry["run"] for entry in figures(tmp_path / "out")] == ["soap"]


def test_a_measurement_that_breaks_shows_all_that_it_said(tmp_path, two, monkeypatch):
    broken = SimpleNamespace(returncode=1, stdout="", stderr="Traceback\nMemoryError\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: broken)
    with pytest.raises(SystemExit, match=r"Traceback\nMemoryError\nmeasuring .*soap ended with exit code 1"):
        optimizer.main([*two, "--out", str(tmp_path / "out")])


BAD = {
    "no run": ([], "no run given"),
    "no steps": (["RUNS", "--steps", "0"], "--steps 0"),
    "devices that don't divide": (["RUNS", "--mesh", "3"], "--mesh 3: a step's 4 sequences don't divide"),
    "no devices": (["RUNS", "--mesh", "0"], "--mesh 0"),
    "no such file": (["RUNS", "--measured", "none.json"], "--measured none.json: No such file"),
    "not JSON": (["RUNS", "--measured", "FILE"], "not JSON"),
    "a run that was not measured": (["RUNS", "--measured", "MUON"], "--measured has no soap (jaxgpt, tiny-soap)"),
    "a number that is none": (["RUNS", "--measured", "NAN"], "finite numbers above 0"),
}


@pytest.mark.parametrize(("arguments", "says"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line(tmp_path, capsys, two, arguments, says):
    (tmp_path / "file").write_text("{")
    nan = write_measured(tmp_path / "1.json", made_up("soap")).replace("1.json", "nan.json")
    Path(nan).write_text((tmp_path / "1.json").read_text().replace("200.0", "NaN"))
    given = {
        "RUNS": two,
        "FILE": [str(tmp_path / "file")],
        "MUON": [write_measured(tmp_path / "2.json", made_up(*MUON))],
        "NAN": [nan],
    }
    words = [word for argument in arguments for word in given.get(argument, [argument])]
    assert says in refused(capsys, *words, "--out", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_the_program_imports_no_framework():
    code = "import sys, benchmarks.optimizer; sys.exit(bool({'jax', 'torch', 'matplotlib.pyplot'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
