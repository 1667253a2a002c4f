"""Stand-ins for srun, scontrol, gcloud, nvidia-smi, pkill and python on PATH, which record how they were called.

Where one starts something, it runs on this machine: two processes on loopback for two nodes. A real pkill would end
every run that this machine has.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from parity_tests.programs import ROOT

LAUNCH = ROOT / "launch"
TOOLS = os.pathsep.join(["/usr/local/bin", "/usr/bin", "/bin"])

PYTHON = """
import os, pathlib, sys
from stand_in import called

words = sys.argv[1:]
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "HOME")
called("python", words, {name: os.environ[name] for name in names if name in os.environ})
module = next(word for word in words if "." in word or word == "pytest")
for flag, made in (("--run", pathlib.Path.mkdir), ("--certificate", pathlib.Path.mkdir), ("--out", pathlib.Path.touch)):
    if flag in words and module not in ("jaxgpt.compare", "jaxgpt.corpus"):
        path = pathlib.Path(words[words.index(flag) + 1])
        path.parent.mkdir(parents=True, exist_ok=True)
        made(path, exist_ok=True)
sys.exit(int(os.environ.get("FAILS_" + module.replace(".", "_"), "0")))
"""
SRUN = """
import os, subprocess, sys
from stand_in import called

words = sys.argv[1:]
called("srun", words, {})
command = [word for word in words if not word.startswith("--cpus") and not word.startswith("--kill")]
if "SRUN_ENDS" in os.environ:
    sys.exit(int(os.environ["SRUN_ENDS"]))
said = {"SLURM_STEP_NODELIST": "localhost,localhost", "SLURM_STEP_NUM_NODES": "2"}
places = [{"SLURM_PROCID": str(i), "SLURM_LOCALID": "0"} for i in range(int(os.environ["SLURM_NTASKS"]))]
tasks = [subprocess.Popen(command, env=os.environ | said | place) for place in places]
sys.exit(max(task.wait() for task in tasks))
"""
GCLOUD = """
import os, pathlib, subprocess, sys
from stand_in import called

words = sys.argv[1:]
called("gcloud", words, {})
value = lambda flag: words[words.index(flag) + 1]
homes = [pathlib.Path(os.environ["WORKERS"], str(i)) for i in range(2)]
if "scp" in words:
    for home in homes:
        home.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", words[words.index("scp") + 1], home], check=True)
    sys.exit()
workers = range(2) if value("--worker") == "all" else [int(value("--worker"))]
shared = {"SLURM_JOB_ID": os.environ.get("JOB", "7"), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
codes = [
    subprocess.Popen(
        ["bash", "-c", value("--command")],
        cwd=homes[i],
        env=os.environ | shared | {"HOME": str(homes[i]), "SLURM_PROCID": str(i), "SLURM_LOCALID": "0"},
    )
    for i in workers
]
sys.exit(max(code.wait() for code in codes))
"""
SCONTROL = """
import sys
from stand_in import called

called("scontrol", sys.argv[1:], {})
print("127.0.0.1\\n127.0.0.1" if "hostnames" in sys.argv else "")
"""
NVIDIA_SMI = "from stand_in import called"
PKILL = """
import sys
from stand_in import called

called("pkill", sys.argv[1:], {})
"""
STAND_IN = """
import json, os

def called(name, words, environment):
    line = json.dumps([name, words, environment]) + chr(10)
    with open(os.environ["CALLS"], "a") as file:
        file.write(line)
"""


class Machine:
    """A folder with stand-ins on its PATH, where a script is run as a user would."""

    def __init__(self, folder: Path, *stand_ins: str):
        self.folder, self.bin = folder, folder / "bin"
        self.bin.mkdir()
        (self.bin / "stand_in.py").write_text(STAND_IN, encoding="utf-8")
        sources = {"python": PYTHON, "srun": SRUN, "gcloud": GCLOUD, "scontrol": SCONTROL, "nvidia-smi": NVIDIA_SMI}
        sources["pkill"] = PKILL
        for name in (*stand_ins, "pkill"):
            (self.bin / name).write_text(f"#!{sys.executable}\n{sources[name]}", encoding="utf-8")
            (self.bin / name).chmod(0o755)

    def run(self, script: str, *words: str, **variables: str) -> subprocess.CompletedProcess:
        here = {"PATH": f"{self.bin}{os.pathsep}{TOOLS}", "CALLS": str(self.folder / "calls"), "HOME": str(self.folder)}
        here |= {"WORKERS": str(self.folder / "workers"), "GIT_CONFIG_COUNT": "1"}
        here |= {"GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*"}
        command = ["bash", str(LAUNCH / script), *words]
        return subprocess.run(
            command, env=here | variables, cwd=self.folder, capture_output=True, text=True, timeout=170
        )

    def calls(self, name: str = "python") -> list[list[str]]:
        """The words of each call of a stand-in so far, in order."""
        return [words for called, words, _ in self._recorded() if called == name]

    def environments(self, name: str = "python") -> list[dict[str, str]]:
        return [environment for called, _, environment in self._recorded() if called == name]

    def _recorded(self) -> list:
        file = self.folder / "calls"
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def modules(calls: list[list[str]]) -> list[str]:
    """Which program each call of python is."""
    return [next(word for word in words if re.fullmatch(r"(jaxgpt|torch_ref)\.\w+|pytest", word)) for words in calls]


def value(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1]


def tool(name: str) -> str:
    """A checker of the extra `test`, on PATH or beside this Python."""
    found = shutil.which(name) or shutil.which(name, path=Path(sys.executable).parent)
    assert found, f"{name} isn't installed: pip install -e '.[test]'"
    return found
