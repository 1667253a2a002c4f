"""`python -m benchmarks.throughput`: short runs of both real trainers, and the table computed from a results file."""

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import gemm, published_copy, throughput, trainer_runs
from benchmarks.throughput_table import read_results, rows, table
from benchmarks.trainer_runs import Entry, FailedRun, TimedRun, entry
from jaxgpt.errors import BadInput
from jaxgpt.recipes import RECIPES
from parity_tests.programs import ROOT

SMALL = "--model.layers 1 --model.width 16 --model.heads 2 --model.context 16 --data.sequences 4"


def made_up(trainer: str, alternation: int, ms: float, **more) -> dict:
    """A run whose first two steps are slower than all others."""
    run = TimedRun(
        trainer=trainer,
        recipe="muon-2024-10-12",
        alternation=alternation,
        devices=1,
        cache="warm" if alternation else "cold",
        step_ms=[9000.0, 5000.0, ms - 1, ms, ms + 1],
        compile_s=50.0 if alternation == 0 else 5.0,
        peak_bytes=2**30,
        step_tokens=524_288,
        token_flops=800_000_000,
        newton_schulz_flops=0,
        micro_batch=64,
        card="a card",
        versions={"x": "1"},
        train_loss=[3.0] * 5,
        wall_s=30.0,
    )
    return dataclasses.asdict(dataclasses.replace(run, **more))


@pytest.fixture
def results() -> dict:
    """Of two trainers, each 10 ms slower in the second alternation; and the peak in both frameworks."""
    runs = [made_up("jaxgpt", a, 800.0 + 10 * a) for a in range(3)]
    runs += [made_up("torch_ref", a, 1000.0 + 10 * a, peak_bytes=2 * 2**30) for a in range(3)]
    gemm_flops = {"jax": [7e14, 8e14, 8.1e14], "torch": [7e14, 7e14]}
    return {"card": "a card", "date": "2026-01-01", "versions": {"x": "1"}, "skip": 2} | {
        "gemm_flops": gemm_flops,
        "runs": runs,
        "failed": [],
    }


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Path:
    """One run of PyTorch's trainer, as a user starts it."""
    out = tmp_path_factory.mktemp("throughput") / "out.json"
    words = ["--recipe", "tiny", "--steps", "5", "--skip", "2", "--alternations", "1", "--trainers", "torch_ref"]
    throughput.main([*words, "--gemm-size", "0", f"--flags={SMALL}", "--out", str(out)])
    return out


def test_a_run_reports_every_step(real):
    (run,) = json.loads(real.read_text())["runs"]
    assert len(run["step_ms"]) == len(run["train_loss"]) == 5
    assert all(ms > 0 for ms in run["step_ms"])


def test_a_first_run_is_cold_and_says_how_long_it_compiled(real):
    (run,) = json.loads(real.read_text())["runs"]
    assert run["cache"] == "cold"
    assert run["compile_s"] > 0


@pytest.mark.slow
def test_both_trainers_alternate_and_the_second_run_finds_a_full_cache(tmp_path):
    out = tmp_path / "out.json"
    words = ["--recipe", "tiny", "--steps", "5", "--skip", "2", "--alternations", "2", "--gemm-size", "16"]
    throughput.main([*words, f"--flags={SMALL}", "--out", str(out)])
    kept = json.loads(out.read_text())
    order = [(run["trainer"], run["cache"]) for run in kept["runs"]]
    assert order == [(trainer, cache) for cache in ("cold", "warm") for trainer in ("jaxgpt", "torch_ref")]
    assert kept["gemm_flops"].keys() == {"jax", "torch"}
    assert all(rate > 0 for each in kept["gemm_flops"].values() for rate in each)
    (jaxgpt, _) = rows(kept)
    assert jaxgpt.warm_s is not None
    assert jaxgpt.cold_s is not None
    assert jaxgpt.warm_s < jaxgpt.cold_s


def test_the_table_is_made_again_from_the_file(real, capsys):
    throughput.main(["--table", str(real)])
    assert capsys.readouterr().out == table(json.loads(real.read_text())) + "\n"


def test_results_that_are_there_are_left_as_they_are(real, capsys):
    before = real.read_bytes()
    with pytest.raises(SystemExit) as end:
        throughput.main(["--recipe", "tiny", "--out", str(real)])
    assert end.value.code == 2
    assert "exists and is left as it is" in capsys.readouterr().err
    assert real.read_bytes() == before


# The table


def test_first_steps_don_t_count(results):
    assert rows(results)[0].step_ms == 810.0


def test_the_ratio_is_taken_within_an_alternation(results):
    median, lowest, highest = rows(results)[0].speed["torch_ref"]
    assert (lowest, median, highest) == (1020 / 820, 1010 / 810, 1000 / 800)


def test_mfu_is_stated_against_the_faster_framework_s_median(results):
    assert rows(results)[0].mfu == pytest.approx(524_288 / 0.810 * 8e8 / 8e14)


def test_mfu_on_several_devices_is_that_of_each(results):
    results["runs"] = [dict(run, devices=4) for run in results["runs"]]
    assert rows(results)[0].mfu == pytest.approx(524_288 / 0.810 * 8e8 / 4 / 8e14)


def test_memory_is_a_share_of_the_reference_s(results):
    assert rows(results)[0].memory == {"torch_ref": 0.5}


def test_compiling_is_told_apart_by_the_cache(results):
    assert (rows(results)[0].cold_s, rows(results)[0].warm_s) == (50.0, 5.0)


def test_every_column_of_the_table_has_its_head(results):
    lines = [line for line in table(results).splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert "step, ms (lowest to highest run)" in lines[0]
    assert "810.0 (800.0 to 820.0)" in lines[2]


def test_without_a_reference_the_table_has_no_ratio(results):
    results["runs"] = results["runs"][:3]
    assert "speed" not in table(results)


def test_what_failed_is_in_the_table(results):
    results["failed"] = [{"trainer": "published", "devices": 1, "alternation": 0}]
    assert "not measured: published on 1, run 1" in table(results)


@pytest.mark.parametrize("text", ["[]", "{}", '{"runs": [{"trainer": "jaxgpt"}]}', "no JSON"])
def test_a_file_without_runs_is_bad_input(tmp_path, text):
    file = tmp_path / "results.json"
    file.write_text(text)
    with pytest.raises(BadInput, match=r"results\.json holds no measured runs"):
        read_results(file)


# What is run


def test_a_trainer_has_flags_and_environment_of_its_own():
    read = entry("XLA_FLAGS='--a --b=c' jaxgpt --model.layers 2")
    assert (read.trainer, read.flags) == ("jaxgpt", ("--model.layers", "2"))
    assert read.environment == (("XLA_FLAGS", "--a --b=c"),)


@pytest.mark.parametrize("written", ["", "jaxgtp", "A=B", "published --steps 3"])
def test_another_trainer_is_bad_input(written):
    with pytest.raises(BadInput, match="--trainers"):
        entry(written)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--skip 20", "--skip 20 of --steps 20"),
        ("--alternations 0", "--alternations 0"),
        ("--data a", "--data and --val-data go together"),
        ("--data no/such --val-data no/such", "--data no/such fits no file"),
        ("--trainers published", "--published FILE go together"),
        ("--out no/such/folder.json", "there is no folder"),
        ("--trainers other", "--trainers other"),
    ],
    ids=lambda value: value if value.startswith("--") else "",
)
def test_what_can_t_be_measured_is_refused_before_anything_runs(words, said, capsys):
    with pytest.raises(SystemExit) as end:
        throughput.main(["--recipe", "tiny", *words.split()])
    err = capsys.readouterr().err
    assert end.value.code == 2
    assert len(err.splitlines()) == 1
    assert said in err


@pytest.fixture
def stand_in(monkeypatch):
    """What was asked of `run`, which takes no time and answers with made-up runs, or fails where a trainer is named."""
    asked: list[tuple[str, int, int]] = []

    def run(each: Entry, plan, alternation: int, devices: int, limit_s: float):
        asked.append((each.label, alternation, devices))
        if "fails" in dict(each.environment):
            return FailedRun(each.label, alternation, devices, 1, "why")
        return TimedRun(**made_up(each.label, alternation, 100.0, devices=devices))

    monkeypatch.setattr(throughput, "run", run)
    return asked


def test_trainers_run_in_turn(stand_in, capsys):
    throughput.main(["--recipe", "tiny", "--gemm-size", "0", "--alternations", "2", "--skip", "1", "--steps", "5"])
    assert [label for label, *_ in stand_in] == ["jaxgpt", "torch_ref"] * 2


def test_a_run_that_fails_is_recorded_and_the_others_go_on(stand_in, tmp_path):
    out = tmp_path / "out.json"
    words = ["--recipe", "tiny", "--gemm-size", "0", "--alternations", "1", "--skip", "1", "--steps", "5", "--out"]
    throughput.main([*words, str(out), "--trainers", "fails=1 jaxgpt", "torch_ref"])
    kept = json.loads(out.read_text())
    assert [each["said"] for each in kept["failed"]] == ["why"]
    assert [run["trainer"] for run in kept["runs"]] == ["torch_ref"]


def test_no_run_begins_that_would_last_beyond_the_budget(stand_in, capsys):
    # 30 s each by what the first ones took
    throughput.main(["--recipe", "tiny", "--gemm-size", "0", "--skip", "1", "--steps", "5", "--budget", "20"])
    assert [alternation for _, alternation, _ in stand_in] == [0, 0]
    assert capsys.readouterr().out.count("not measured") == 4


def test_a_run_that_takes_too_long_is_ended_with_all_that_it_started(tmp_path):
    slow = ["sh", "-c", "sleep 60 & echo $! > child; wait"]
    code, _ = trainer_runs._finish(slow, tmp_path, tmp_path / "said", {"PATH": "/usr/bin:/bin"}, 1)
    assert code is None
    assert_ends(int((tmp_path / "child").read_text()))


def test_who_does_not_follow_is_killed():
    deaf = subprocess.Popen(
        ["sh", "-c", "trap '' TERM; echo; sleep 60"], stdout=subprocess.PIPE, start_new_session=True
    )
    assert deaf.stdout is not None
    deaf.stdout.readline()
    trainer_runs.end_all([deaf], 0.2)
    assert deaf.returncode == -9
    deaf.stdout.close()


def test_torchruns_workers_are_ended_too(tmp_path):
    """They are in sessions of their own, which a signal to torchrun's doesn't reach."""
    program = tmp_path / "worker.py"
    program.write_text(f"import os, time\nopen(f'{tmp_path}/{{os.getpid()}}.worker', 'x')\ntime.sleep(120)\n")
    words = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2"]
    started = subprocess.Popen([sys.executable, *words, str(program)], start_new_session=True)
    try:
        for _ in range(600):
            if len(workers := [int(file.stem) for file in tmp_path.glob("*.worker")]) == 2:
                break
            time.sleep(0.1)
        assert len(workers) == 2
    finally:
        trainer_runs.end_all([started], 40)
    for worker in workers:
        assert_ends(worker)


def assert_ends(process: int) -> None:
    """In a while: a killed process is dead a moment after the signal."""
    stat = Path(f"/proc/{process}/stat")
    for _ in range(100):
        try:
            if stat.read_text().split()[2] == "Z":
                return
        except OSError:
            return
        time.sleep(0.1)
    pytest.fail(f"process {process} runs on")


def test_what_a_run_said_comes_with_its_exit_code(tmp_path):
    fails = ["sh", "-c", "echo here >&2; exit 7"]
    ended = trainer_runs._finish(fails, tmp_path, tmp_path / "said", {"PATH": "/usr/bin:/bin"}, 5)
    assert ended == (7, "here\n")


@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_products_are_timed_after_the_first_group(framework, capsys):
    gemm.main([framework, "--size", "8", "--groups", "3", "--products", "2"])
    rates = json.loads(capsys.readouterr().out)["flops"]
    assert len(rates) == 2
    assert all(rate > 0 for rate in rates)


# The published script, of which none is part of this: its lines as they would be

FIELDS = """
class Args:
    input_bin : str = 'a_*.bin' # of training
    input_val_bin : str = 'b_*.bin'
    num_iterations : int = 6000
    warmup_iters : int = 0
    warmdown_iters : int = 1800 # of num_iterations : int = 6000
    val_tokens : int = 10485760
if hasattr(config, "coordinate_descent_tuning"):
    config.coordinate_descent_tuning = True # slow
"""
CHANGES = published_copy.changes(RECIPES["muon-2024-10-12"].schedule.scaled(20), "/d/t_*.bin", "/d/v_*.bin", 65536)


def test_only_counts_paths_and_tuning_are_changed():
    changed = published_copy.replaced(FIELDS, CHANGES, "x").splitlines()
    differing = [line for line, before in zip(changed, FIELDS.splitlines(), strict=True) if line != before]
    assert differing == [
        "    input_bin : str = '/d/t_*.bin' # of training",
        "    input_val_bin : str = '/d/v_*.bin'",
        "    num_iterations : int = 20",
        "    warmdown_iters : int = 6 # of num_iterations : int = 6000",
        "    val_tokens : int = 65536",
        "    config.coordinate_descent_tuning = False # slow",
    ]


@pytest.mark.parametrize("text", [FIELDS.replace("warmdown", "cooldown"), FIELDS + FIELDS], ids=["absent", "twice"])
def test_a_change_that_doesn_t_fit_one_place_is_refused(text):
    with pytest.raises(BadInput, match="places, not one"):
        published_copy.replaced(text, CHANGES, "x")


LOG = """step:0/12 val_loss:10.9 train_time:0ms step_avg:nanms
step:1/12 train_loss:10.9 train_time:1500ms step_avg:nanms
step:2/12 train_loss:9.5 train_time:2500ms step_avg:nanms
step:11/12 train_loss:7.5 train_time:1060ms step_avg:nanms
step:12/12 train_loss:7.4 train_time:2130ms step_avg:1065.00ms
peak memory consumption: 100 MiB
"""


def test_the_log_s_times_become_times_of_steps():
    read = published_copy.read_log(LOG)
    assert read["step_ms"] == [1500, 1000, 1060, 1070]
    assert read["train_loss"] == [10.9, 9.5, 7.5, 7.4]
    assert read["peak_bytes"] == 100 * 2**20


def test_a_log_without_steps_is_bad_input():
    with pytest.raises(BadInput, match="without its log"):
        published_copy.read_log("Traceback")


@pytest.mark.parametrize("kind", ["unknown", "another recipe"])
def test_a_script_that_isn_t_of_the_recipe_is_refused(tmp_path, capsys, monkeypatch, kind):
    file = tmp_path / "train_gpt2.py"
    file.write_text(FIELDS)
    if kind == "another recipe":
        monkeypatch.setattr(throughput, "known_recipe", lambda _: "muon-2024-10-10")
    with pytest.raises(SystemExit) as end:
        throughput.main(["--trainers", "published", "--published", str(file)])
    assert end.value.code == 2
    assert str(file) in capsys.readouterr().err


STAND_IN = (
    FIELDS.replace("if hasattr(config", "config = Args()\nif hasattr(config")
    + """
import os
from pathlib import Path
assert (os.environ["RANK"], os.environ["WORLD_SIZE"], os.environ["LOCAL_RANK"]) == ("0", "1", "0")
Path("logs").mkdir()
print(Path(__file__).parent == Path.cwd())
for step in range(Args.num_iterations):
    print(f"step:{step + 1}/{Args.num_iterations} train_loss:3.5 train_time:{(step % 10 + 1) * 100}ms step_avg:nanms")
print("peak memory consumption: 7 MiB")
"""
)


def test_the_published_script_is_run_as_one_process_in_a_folder_of_its_own(tmp_path, monkeypatch):
    file = tmp_path / "train_gpt2.py"
    file.write_text(STAND_IN)
    monkeypatch.setattr(published_copy, "known_recipe", lambda _: "muon-2024-10-12")
    plan = trainer_runs.Plan(RECIPES["muon-2024-10-12"], 12, "/d/t_*.bin", "/d/v_*.bin", file, (), tmp_path)
    ended = trainer_runs.run(entry("published"), plan, 0, 1, 30)
    assert isinstance(ended, TimedRun), ended
    assert ended.step_ms == [100.0] * 12
    assert (ended.peak_bytes, ended.compile_s) == (7 * 2**20, None)
    assert not (tmp_path / "logs").exists()


def test_the_programs_that_measure_hold_no_framework_and_so_no_memory_of_the_card():
    programs = "benchmarks.throughput, benchmarks.scaling, benchmarks.breakdown"
    code = f"import sys, {programs}; sys.exit(bool({{'jax', 'torch'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
