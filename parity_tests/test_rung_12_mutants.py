"""Rung 12, second half: generated errors in either trainer, and how many of them the ladder sees.

The count is in `mutants/results.json`, which `python -m parity_tests.mutants` writes: it takes minutes on many cores. A
test here fails where too few were killed or a survivor has no reason beside it, not where a source has changed since.
"""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from parity_tests.mutants import results
from parity_tests.mutants.mutate import FILES, FRAMEWORKS, PER_FRAMEWORK, chosen, mutants, sources
from parity_tests.planted.run import copied
from parity_tests.programs import ROOT

LEAST = 0.95
"""Of the mutants, killed."""


@pytest.fixture(scope="module")
def texts():
    return sources(ROOT)


@pytest.fixture(scope="module")
def every(texts):
    return chosen(texts)


def made_of(line: str) -> set[str]:
    """What a line of a function is changed to."""
    source = f"def f(a, b, c):\n    {line}\n"
    return {mutant.applied(source).splitlines()[1].strip() for mutant in mutants("f.py", source)}


MADE = {
    "return a - b": {"return (a + b)", "return a"},
    "return a @ b": {"return (b @ a)", "return a"},
    "return a < b": {"return (a <= b)"},
    "return -a": {"return a"},
    "return a[1]": {"return a[0]", "return a[2]"},
    "return a, b": {"return (b, a)"},
    "return a[:, None]": {"return a[None, :]"},
    "return a.sum()": {"return a.mean()"},
    "return a.astype(b)": {"return a"},
    "return f(a, 0.5)": {"return f(a, 1.0)"},
    "return jnp.where(a, b, c)": {"return jnp.where(a, c, b)"},
    "return a if b else c": {"return a if (not b) else c"},
    'return a(reduction="sum")': {"return a(reduction='mean')"},
    "a *= b": {"a /= b", "pass"},
    "a = b": {"pass"},
    "d = b": set(),
    "a.append(b)": {"pass"},
    'raise ValueError(f"{a - 1} is not {b}")': set(),
    "zip(a, b, strict=True)": {"pass"},
    "d: Float[Array, 3] = b": set(),
    '"""x = 1"""': set(),
}


@pytest.mark.parametrize("line", MADE)
def test_a_line_is_changed_in_one_place_at_a_time(line):
    assert made_of(line) == MADE[line]


def test_two_hundred_different_programs_are_chosen(every, texts):
    changed = {(mutant.file, ast.dump(ast.parse(mutant.applied(texts[mutant.file])))) for mutant in every}
    unchanged = {(file, ast.dump(ast.parse(text))) for file, text in texts.items()}
    assert len(changed - unchanged) == len(FRAMEWORKS) * PER_FRAMEWORK == 200


def test_each_has_a_name_of_its_own(every):
    assert len({mutant.id for mutant in every}) == len(every)


def test_either_framework_has_half_of_them_and_every_file_its_share(every, texts):
    for framework in FRAMEWORKS:
        of = {file: len(mutants(file, texts[file])) for file in FILES if file.startswith(framework)}
        got = {file: sum(mutant.file == file for mutant in every) for file in of}
        assert got == pytest.approx({file: PER_FRAMEWORK * n / sum(of.values()) for file, n in of.items()}, abs=1)
        assert min(got.values()) > 0


def test_the_same_seed_chooses_the_same_and_another_one_others(texts):
    first = chosen(texts, seed=3, each=10)
    assert chosen(texts, seed=3, each=10) == first
    assert chosen(texts, seed=4, each=10) != first


def test_a_change_of_another_text_is_refused(every, texts):
    with pytest.raises(ValueError, match="doesn't stand there"):
        every[0].applied("#" + texts[every[0].file])


PROGRAM = """
import sys
from pathlib import Path
from parity_tests.mutants.run import Job, climbed, warm
warm()
here = Path.cwd()
jobs = [Job(name, here / name, ["0"], None, here / "compiled", False) for name in sys.argv[2:]]
for job, outcome in climbed(jobs, 1, float(sys.argv[1])):
    print(job.name, outcome.ended, outcome.rung, (outcome.test or "").split("::")[-1].split("[")[0])
"""
CHANGES = {"unchanged": ("", ""), "changed": ("return window[:-1]", "return window[1:]")}
CHANGES["endless"] = ("            yield item", "            pass")


def climb(folder: Path, environment: dict[str, str], patience: float, *names: str) -> list[str]:
    """How rung 0 ends in copies with those changes of torch_ref/tokens.py."""
    with copied() as base:
        for name in names:
            shutil.copytree(base, folder / name)
            file = folder / name / "torch_ref" / "tokens.py"
            text = file.read_text(encoding="utf-8")
            assert CHANGES[name][0] in text
            file.write_text(text.replace(*CHANGES[name], 1), encoding="utf-8")
    command = [sys.executable, "-c", PROGRAM, str(patience), *names]
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()


def test_a_mutant_is_killed_and_the_unchanged_copy_is_green(tmp_path, environment):
    assert climb(tmp_path, environment, 100, "unchanged", "changed") == [
        "unchanged green None ",
        "changed red 0 test_stream_is_the_shards_cut_into_steps",
    ]


@pytest.mark.slow
def test_a_mutant_whose_test_never_ends_is_killed(tmp_path, environment):
    hangs = "test_prefetched_stream_is_the_same_and_its_positions_resume_it"
    assert climb(tmp_path, environment, 30, "endless") == [f"endless timeout 0 {hangs}"]


@pytest.fixture(scope="module")
def recorded():
    if not results.RESULTS.exists():
        pytest.skip("no results yet: python -m parity_tests.mutants writes them")
    return results.read(results.RESULTS)


def changed_since(recorded, texts) -> str:
    files = [file for file, hashed in results.hashes(texts).items() if recorded["sources"][file] != hashed]
    return f"python -m parity_tests.mutants runs what is missing; changed since: {', '.join(files) or 'nothing'}"


def test_all_that_were_chosen_have_been_run(recorded, texts):
    assert len(recorded["mutants"]) == recorded["generated"] == 200, changed_since(recorded, texts)


def test_nineteen_in_twenty_are_killed(recorded, texts):
    killed = [each for each in recorded["mutants"] if each["outcome"] == "killed"]
    assert len(killed) == recorded["killed"]
    assert len(killed) >= LEAST * recorded["generated"], changed_since(recorded, texts)


def test_every_survivor_has_a_reason(recorded):
    assert [each["id"] for each in recorded["mutants"] if each["outcome"] == "survived" and not each["why"]] == []


def test_every_killed_one_has_the_test_that_did_it(recorded):
    assert [each["id"] for each in recorded["mutants"] if each["outcome"] == "killed" and not each["test"]] == []
