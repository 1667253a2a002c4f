"""pytest's side of the certificate: what is asked for, what tests report, when it is written.

With pytest-xdist the workers report to one controller, which writes; what only they know travels as `workeroutput`.
"""

import datetime
import json
import os
import time
from pathlib import Path

import pytest

from parity_tests.certificate.document import Run, document
from parity_tests.certificate.environment import environment
from parity_tests.certificate.outcome import Outcome, after
from parity_tests.certificate.page import page

JSON, PAGE = "certificate.json", "certificate.html"


def add_option(parser: pytest.Parser) -> None:
    """`--certificate DIR`."""
    parser.addoption("--certificate", metavar="DIR", help=f"write {JSON} and {PAGE} into the new folder DIR")


def register(config: pytest.Config, ladder: Path) -> None:
    """Record this run where `--certificate` asks for it; `ladder` is the folder of the rungs' files.

    Raises:
      pytest.UsageError: the folder exists or can't be made.
    """
    asked = config.getoption("--certificate")
    if asked is None or config.option.collectonly:
        return
    if hasattr(config, "workerinput"):
        config.pluginmanager.register(Worker(config, ladder), "certificate")
        return
    folder = config.invocation_params.dir / asked
    _check(folder, asked)
    config.pluginmanager.register(Certificate(config, folder, asked, ladder), "certificate")


def _check(folder: Path, asked: str) -> None:
    if folder.exists() or folder.is_symlink():
        raise pytest.UsageError(f"--certificate {asked}: exists; name another folder")
    parent = next(p for p in folder.parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise pytest.UsageError(f"--certificate {asked}: {parent} is no folder that can be written; name another")


class Worker:
    """In a worker of pytest-xdist: what was left out of the collection, and what the tests run on."""

    def __init__(self, config: pytest.Config, ladder: Path):
        self.config, self.ladder = config, ladder
        self.left_out: set[str] = set()

    def pytest_deselected(self, items: list[pytest.Item]) -> None:
        self.left_out |= {item.nodeid for item in items}

    def pytest_sessionfinish(self) -> None:
        said = json.dumps({"left_out": sorted(self.left_out), "environment": environment(self.ladder)})
        self.config.workeroutput["certificate"] = said  # type: ignore[attr-defined]


class Certificate:
    """Collects what tests report and writes it when the session ends, however it ends."""

    def __init__(self, config: pytest.Config, folder: Path, asked: str, ladder: Path):
        self.config, self.folder, self.asked, self.ladder = config, folder, asked, ladder
        self.outcomes: dict[str, Outcome] = {}
        self.collected: set[str] = set()
        self.left_out: set[str] = set()
        self.environment: dict | None = None
        self.interrupted = False
        self.said = ""
        self.started = time.perf_counter()

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file that can't be collected, or asks to be skipped, counts as a test of its rung."""
        if report.outcome != "passed":
            self._add(report)

    def pytest_deselected(self, items: list[pytest.Item]) -> None:
        self.left_out |= {item.nodeid for item in items}

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.collected |= {item.nodeid for item in session.items}

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        self.collected |= set(ids)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node) -> None:
        if said := getattr(node, "workeroutput", {}).get("certificate"):
            of_worker = json.loads(said)
            self.left_out |= set(of_worker["left_out"])
            self.environment = of_worker["environment"]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._add(report)

    def _add(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        before = self.outcomes.get(report.nodeid, Outcome(report.nodeid, ended=False))
        self.outcomes[report.nodeid] = after(before, report)

    def pytest_keyboard_interrupt(self) -> None:
        self.interrupted = True

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        made = document(self._run())
        try:
            self.folder.mkdir(parents=True)
            (self.folder / JSON).write_text(json.dumps(made, indent=1, allow_nan=False) + "\n", encoding="utf-8")
            (self.folder / PAGE).write_text(page(made), encoding="utf-8")
        except OSError as error:  # another run took the folder, the disk is full
            self.said = f"ERROR: --certificate {self.asked}: {error.strerror}; the certificate was not written"
            session.exitstatus = pytest.ExitCode.USAGE_ERROR
        else:
            self.said = f"certificate: {Path(self.asked) / PAGE}"

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.write_line(self.said)

    def _run(self) -> Run:
        root, ladder = self.config.rootpath, self.ladder
        ended = {test: outcome for test, outcome in self.outcomes.items() if outcome.ended}
        return Run(
            outcomes=list(ended.values()),
            not_reached=sorted(self.collected - ended.keys()),
            left_out=sorted(self.left_out),
            files=sorted(os.path.relpath(file, root) for file in ladder.glob("test_*.py")),
            root=root,
            selected=_selected(self.config),
            interrupted=self.interrupted,
            command=["pytest", *map(str, self.config.invocation_params.args)],
            flags=_flags(self.config),
            seconds=time.perf_counter() - self.started,
            written=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            environment=self.environment or environment(ladder),
        )


def _selected(config: pytest.Config) -> bool:
    """Whether the command asked for some of a file's tests: a rung that ran may then have run in part."""
    options = ("keyword", "markexpr", "deselect", "lf", "stepwise")
    return any("::" in argument for argument in config.args) or any(
        config.getoption(option, default=None) for option in options
    )


def _flags(config: pytest.Config) -> list[str]:
    """What a command that runs a line again needs besides its files: where it ran."""
    device = config.getoption("--device", default="cpu")
    return [] if device == "cpu" else ["--device", device]
