"""Bad input of both trainers: one line on stderr with the value and the mend, exit 2, nothing written over."""

import os
import re
from collections.abc import Callable

import pytest

from parity_tests.programs import TRAINERS, Ended, data_in

DATA = "--data text_train_*.bin --val-data text_val_*.bin --val-tokens 1024"
MAKE = "python -m jaxgpt.corpus"

BAD_INPUT: dict[str, tuple[str, tuple[str, ...]]] = {
    # name: (command line, what its one line says: the value, the mend)
    "unknown recipe": ("--recipe tinny", ("--recipe tinny", "did you mean tiny?")),
    "recipe of another day": ("--recipe=muon-2024-10-21", ("muon-2024-10-21", "did you mean muon-2024-10-12?")),
    "unknown flag": ("--setps 6", ("--setps", "did you mean --steps?")),
    "unknown field": ("--recipe tiny --model.layer 4", ("--model.layer", "did you mean --model.layers?")),
    "stray word": ("tiny", ("tiny", "--help")),
    "flag without its value": ("--steps", ("--steps", "--help")),
    "steps of another type": ("--steps six", ("six", "--steps", "--help")),
    "rate of another type": ("--optimizer.lr fast", ("fast", "--optimizer.lr", "--help")),
    "unknown dtype": ("--dtype float16", ("float16", "--dtype", "float32", "--help")),
    "no steps": (f"{DATA} --steps 0", ("--steps 0", "at least 1")),
    "stop at 0": (f"{DATA} --stop-at 0", ("--stop-at 0", "at least 1")),
    "no updates between checkpoints": (f"{DATA} --save-every 0", ("--save-every 0", "at least 1")),
    "no checkpoint kept": (f"{DATA} --keep 0", ("--keep 0", "at least 1")),
    "resume without a run": (f"{DATA} --resume", ("--resume", "--run")),
    "resume of no run": (f"{DATA} --run none --resume", ("no run folder none", "mend --run")),
    "resume of a folder that is no run's": (f"{DATA} --run runs --resume", ("runs has no config.json", "mend --run")),
    "negative seed": (f"{DATA} --seed -1", ("--seed -1", "from 0 up to")),
    "seed too large": (f"{DATA} --seed 99999999999999999999", ("--seed 99999999999999999999", "2**32")),
    "mesh 0": (f"{DATA} --mesh 0", ("--mesh 0", "at least 1")),
    "mesh larger than the machine": (f"{DATA} --mesh 8", ("--mesh 8", "this machine has 1")),
    "micro-batch that doesn't divide": (f"{DATA} --micro-batch 5", ("--micro-batch 5", "16 sequences", "divisor")),
    "micro-batch 0": (f"{DATA} --micro-batch 0", ("micro_batch is 0", "at least 1")),
    "layers 0": (f"{DATA} --model.layers 0", ("model.layers is 0", "at least 1")),
    "heads that don't divide": (f"{DATA} --model.heads 3", ("model.heads 3", "model.width 128", "even multiple")),
    "more ids than rows": (f"{DATA} --model.vocab 200", ("model.token_ids 256", "model.vocab 200", "needs a row")),
    "schedule too short": (f"{DATA} --schedule.steps 9", ("9 steps", "schedule.warmdown", "at most")),
    "steps and schedule": (f"{DATA} --steps 9 --schedule.warmdown 3", ("--steps", "--schedule", "one of the two")),
    "rate below 0": (f"{DATA} --optimizer.lr -1", ("optimizer.lr is -1", "above 0")),
    "no shard matches": (f"{DATA} --data none_*.bin", ("--data none_*.bin", MAKE)),
    "no validation shard matches": (f"{DATA} --val-data none_*.bin", ("--val-data none_*.bin", MAKE)),
    "data without validation": ("--data text_val_000000.bin", ("--data text_val_000000.bin", "--val-data")),
    "validation without data": ("--val-data text_val_000000.bin", ("--val-data text_val_000000.bin", "--data")),
    "GPT-2's vocabulary without data": ("--recipe muon-2024-10-12", ("muon-2024-10-12", f"{MAKE} fineweb", "--data")),
    "shard of another magic": (f"{DATA} --data magic.bin", ("magic.bin starts with 20240801", "20240520", MAKE)),
    "shard of another version": (f"{DATA} --data version.bin", ("version.bin", "version 7, not 1", MAKE)),
    "shard cut short": (f"{DATA} --data cut.bin", ("cut.bin has 5000 bytes", "5224 bytes", "fetch or make it again")),
    "shard longer than it says": (f"{DATA} --data long.bin", ("long.bin has 5300 bytes", "5224 bytes", "again")),
    "shard shorter than its header": (f"{DATA} --data stub.bin", ("stub.bin has 100 bytes", "1024", "again")),
    "token outside the vocabulary": (
        f"{DATA} --data ids.bin",
        ("ids.bin", "token 256 at position 77", "larger"),
    ),
    "token outside, in validation": (f"{DATA} --val-data ids.bin", ("ids.bin", "--val-data", "token 256")),
    "shard shorter than a step": (f"{DATA} --data short.bin", ("short.bin holds 1024", "16 x 64 + 1", "longer")),
    "validation shard too short": (
        f"{DATA} --val-tokens 2048",
        ("text_val_000000.bin", "1100 tokens", "give 1088"),
    ),
    "validation of half a sequence": (f"{DATA} --val-tokens 100", ("--val-tokens 100", "context 64", "give 64")),
    "folder for a shard": (f"{DATA} --data folder", ("folder is a folder", "name the files in one")),
    "path through a file": (f"{DATA} --data stub.bin/*.bin", ("--data stub.bin/*.bin", "mend its path")),
    "run folder that exists": (
        f"{DATA} --run runs/old",
        ("--run runs/old exists already", "give another name", "--resume"),
    ),
    "run where a file is": (f"{DATA} --run stub.bin", ("--run stub.bin exists already", "give another name")),
    "run below a file": (f"{DATA} --run stub.bin/new", ("--run stub.bin/new", "stub.bin is not a folder")),
    "no weights": (f"{DATA} --init-from none.safetensors", ("--init-from none.safetensors", "give a file of")),
    "a folder for weights": (f"{DATA} --init-from folder", ("--init-from folder", "give a file of")),
    "weights that aren't safetensors": (f"{DATA} --init-from stub.bin", ("--init-from stub.bin", "give a file of")),
    "weights cut short": (f"{DATA} --init-from cut.safetensors", ("--init-from cut.safetensors", "give a file of")),
    "weights of another shape": (
        f"{DATA} --init-from wide.safetensors",
        ("--init-from wide.safetensors", "wte.weight is (256, 192) there and (256, 128) in tiny", "overrides"),
    ),
    "weights of another recipe": (
        f"{DATA} --init-from modern.safetensors",
        ("--init-from modern.safetensors", "h.0.attn.c_attn.weight is missing", "recipe"),
    ),
    "weights of more layers": (
        f"{DATA} --init-from tiny.safetensors --model.layers 3",
        ("--init-from tiny.safetensors", "h.3.attn.c_attn.weight", "recipe"),
    ),
}

BAD_INPUT_OF_ONE = {
    "jaxgpt.train": {
        "mesh that doesn't divide a step": (f"{DATA} --mesh 3", ("--mesh 3", "16 sequences", "a divisor of 16")),
        "mesh that doesn't divide validation": (
            f"{DATA} --mesh 8 --val-tokens 768",
            ("--val-tokens 768", "--mesh 8", "give 512"),
        ),
    },
    "torch_ref.train": {
        "mesh without torchrun": (
            f"{DATA} --mesh 3",
            ("--mesh 3", "1 process started", "torchrun --nproc-per-node 3 -m -- torch_ref.train --mesh 3"),
        ),
    },
}


def bad_inputs(trainer: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    return BAD_INPUT | BAD_INPUT_OF_ONE[trainer]


@pytest.fixture(scope="module")
def refused(shards, run_all) -> Callable[[str, str], Ended]:
    """(trainer, name of a bad input) -> how that run ended. A trainer runs all of its bad inputs at the first ask."""
    ends: dict[str, dict[str, Ended]] = {}

    def end(trainer: str, name: str) -> Ended:
        if trainer not in ends:
            jobs = {each: words.split() for each, (words, _) in bad_inputs(trainer).items()}
            ends[trainer] = run_all(shards, trainer, jobs)
        return ends[trainer][name]

    return end


EACH_BAD_INPUT = [(trainer, name) for trainer in TRAINERS for name in bad_inputs(trainer)]


@pytest.mark.parametrize(("trainer", "name"), EACH_BAD_INPUT)
def test_bad_input_is_said_in_one_line_with_its_mend(refused, trainer, name):
    ended = refused(trainer, name)
    assert re.fullmatch(r"error: [^\n]+\n", ended.stderr), ended.stderr
    for said in bad_inputs(trainer)[name][1]:
        assert said in ended.stderr


@pytest.mark.parametrize(("trainer", "name"), EACH_BAD_INPUT)
def test_bad_input_exits_with_2_and_leaves_the_disk_as_it_was(refused, trainer, name):
    ended = refused(trainer, name)
    assert (ended.code, ended.changed) == (2, False), ended.stderr


@pytest.mark.skipif(os.name == "posix" and os.geteuid() == 0, reason="root can read anything")
@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_folder_that_cannot_be_read_is_named(shards, tmp_path, run, trainer):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0)
    ended = run(shards, trainer, *f"--data {locked}/text_train_*.bin --val-data text_val_*.bin".split())
    assert ended.code == 2
    assert re.fullmatch(rf"error: --data {locked}/\S+: the folder {locked} can't be read: .*\n", ended.stderr)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_bad_input_reaches_the_shell(shards, run, trainer):
    ended = run(shards, trainer, *f"{DATA} --run runs/old".split())
    error = "error: --run runs/old exists already and is left as it is: give another name, or go on with that run by "
    error += "--resume\n"
    assert (ended.code, ended.stderr) == (2, error)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_folder_that_another_run_takes_meanwhile_is_left_to_it(shards, tmp_path, run_all, trainer):
    ended = run_all(tmp_path, trainer, {"folder taken": f"{data_in(shards)} --stop-at 1 --run runs/taken".split()})[
        "folder taken"
    ]
    assert (ended.code, ended.stderr) == (
        2,
        "error: --run runs/taken exists already and is left as it is: give another name, or go on with that run by "
        "--resume\n",
    )
    written = {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "runs" / "taken").iterdir()}
    assert written == {"config.json": "another's"}
