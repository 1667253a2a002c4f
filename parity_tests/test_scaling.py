"""`python -m benchmarks.scaling`: efficiency and losses over devices from made-up runs; with --full, real ones."""

import json

import pytest

from benchmarks import scaling, throughput
from benchmarks.scaling import WITHOUT, rows, table
from benchmarks.trainer_runs import Entry, TimedRun
from parity_tests.test_throughput import SMALL, made_up


@pytest.fixture
def results() -> dict:
    """1000 ms on one device, 550 on two; 10% of either is Newton-Schulz; losses part by 0.25 at the third step."""
    runs = []
    for devices, ms in ((1, 1000.0), (2, 550.0)):
        losses = [3.0, 2.0, 1.0 + 0.25 * (devices - 1), 1.0, 1.0]
        runs.append(made_up("jaxgpt", 0, ms, devices=devices, train_loss=losses))
        runs.append(made_up("jaxgpt" + WITHOUT, 0, 0.9 * ms, devices=devices))
    return {"skip": 3, "card": "a card", "runs": runs, "failed": []}


def test_efficiency_is_a_device_s_rate_over_that_of_one(results):
    assert [row.efficiency for row in rows(results)] == pytest.approx([1.0, 1000.5 / 2 / 550.5])


def test_without_one_device_there_is_no_efficiency(results):
    results["runs"] = [run for run in results["runs"] if run["devices"] == 2]
    assert [row.efficiency for row in rows(results)] == [None]


def test_the_share_of_newton_schulz_is_what_a_step_without_it_saves(results):
    assert [row.newton_schulz for row in rows(results)] == pytest.approx([0.1, 0.1], abs=1e-4)


def test_losses_are_compared_with_those_of_one_device_at_every_step(results):
    assert [row.loss_apart for row in rows(results)] == [None, 0.25]


def test_the_table_has_a_line_for_each_trainer_and_number_of_devices(results):
    lines = [line for line in table(results).splitlines() if line.startswith("| jaxgpt")]
    assert [line.split(" | ")[1] for line in lines] == ["1", "2"]


def test_files_given_together_make_one_table(results, tmp_path, capsys):
    for n in (1, 2):
        part = results | {"runs": [run for run in results["runs"] if run["devices"] == n], "date": f"2026-11-2{n}"}
        (tmp_path / f"{n}.json").write_text(json.dumps(part))
    scaling.main(["--table", *(f"{tmp_path}/{n}.json" for n in (2, 1))])
    said = capsys.readouterr().out
    assert "2026-11-22 and 2026-11-21" in said
    assert "90.9%" in next(line for line in said.splitlines() if line.startswith("| jaxgpt | 2"))


def test_what_failed_in_one_file_and_ran_in_another_is_measured(results, tmp_path):
    failed = [{"trainer": "jaxgpt", "devices": n, "alternation": 1} for n in (1, 4)]
    (tmp_path / "a.json").write_text(json.dumps(results | {"runs": [], "failed": failed}))
    (tmp_path / "b.json").write_text(json.dumps(results))
    (tmp_path / "c.json").write_text(json.dumps(results | {"failed": failed}))
    missing = lambda *files: [run["devices"] for run in scaling.joined(files)["failed"]]  # noqa: E731
    assert missing(tmp_path / "a.json", tmp_path / "b.json") == [4]
    assert missing(tmp_path / "c.json") == [1, 4]


def test_files_of_different_cards_make_none(results, tmp_path, capsys):
    for n in (1, 2):
        (tmp_path / f"{n}.json").write_text(json.dumps(results | {"card": f"card {n}"}))
    with pytest.raises(SystemExit) as end:
        scaling.main(["--table", f"{tmp_path}/1.json", f"{tmp_path}/2.json"])
    assert end.value.code == 2
    assert "different cards, card 1, card 2" in capsys.readouterr().err


def test_each_number_of_devices_is_run_with_and_without_newton_schulz(monkeypatch, capsys):
    asked = []

    def run(each: Entry, plan, alternation: int, devices: int, limit_s: float):
        asked.append((each.label, devices))
        return TimedRun(**made_up(each.label, alternation, 100.0, devices=devices))

    monkeypatch.setattr(throughput, "run", run)
    words = "--recipe tiny --devices 1 2 --trainers jaxgpt --newton-schulz --gemm-size 0 --steps 5 --skip 2"
    scaling.main(words.split())
    assert asked == [(name, n) for n in (1, 2) for name in ("jaxgpt", "jaxgpt" + WITHOUT)]


@pytest.mark.parametrize("words", ["--devices 0", "--devices 1 --alternations 0"])
def test_no_devices_are_refused(words, capsys):
    with pytest.raises(SystemExit) as end:
        scaling.main(["--recipe", "tiny", *words.split()])
    assert end.value.code == 2
    assert "at least 1" in capsys.readouterr().err


@pytest.mark.slow
def test_both_trainers_run_on_two_devices_from_the_same_start(tmp_path):
    out = tmp_path / "scaling.json"
    words = ["--recipe", "tiny", "--devices", "1", "2", "--steps", "5", "--skip", "2", "--gemm-size", "0"]
    scaling.main([*words, f"--flags={SMALL}", "--out", str(out)])
    kept = json.loads(out.read_text())
    assert [(run["trainer"], run["devices"]) for run in kept["runs"]] == [
        (trainer, n) for n in (1, 2) for trainer in ("jaxgpt", "torch_ref")
    ]
    assert all(row.loss_apart < 1e-4 for row in rows(kept) if row.devices == 2)
