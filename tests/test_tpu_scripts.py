"""scripts/tpu: the commands that they print and run, what a host does with them, and the guide's commands."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fyp_jax.config import load_config
from fyp_jax.pipeline.config import SampleConfig
from fyp_jax.training.config import TrainConfig

ROOT = Path(__file__).parent.parent
SCRIPTS = ROOT / "scripts" / "tpu"
GUIDE = ROOT / "docs" / "from_zero_to_a_pod.md"
TARGET = {"project": "my-project", "zone": "us-west4-a", "name": "my-pod"}
POD = {**TARGET, "type": "v5litepod-16", "runtime": "v2-alpha-tpuv5-lite"}
RUN = {"bucket": "my-bucket", "run": "sd14_motion", "config": "configs/sd14/stage2_motion.yaml"}
PROMPT = """validation.prompt=["A robot, on the beach", "It's $HOME, 100%"]"""
OVERRIDES = ["data.path=/mnt/bucket/records/captioned_videos", "data.batch_size=16", PROMPT]
TRAIN = [
    *("python", "train.py", "--config", RUN["config"], "output_dir=runs/sd14_motion"),
    *("checkpoint.folder=gs://my-bucket/runs/sd14_motion/checkpoints", *OVERRIDES),
]
CALLS = {
    "create.sh": (POD, ["--spot"]),
    "install.sh": (TARGET, []),
    "start.sh": (TARGET | RUN, OVERRIDES),
    "stop.sh": (TARGET, []),
    "watch.sh": (TARGET | {"run": RUN["run"]}, ["--follow"]),
    "resume.sh": (POD | RUN | {"poll": "0"}, ["--spot", *OVERRIDES]),
    "copy_out.sh": ({"project": "my-project", "bucket": "my-bucket", "run": RUN["run"], "out": "OUT"}, []),
    "delete.sh": (TARGET, []),
    "xpk.sh cluster": (TARGET | {"type": POD["type"]}, ["--spot"]),
    "xpk.sh bucket": (TARGET | {"bucket": "my-bucket"}, []),
    "xpk.sh image": ({"image": "host/image:tag"}, []),
    "xpk.sh start": (TARGET | RUN | {"type": POD["type"], "image": "host/image:tag"}, OVERRIDES),
    "xpk.sh list": (TARGET, []),
    "xpk.sh stop": (TARGET | {"run": RUN["run"]}, []),
    "xpk.sh delete": (TARGET, []),
}
"""For each script: its required flags, and further arguments."""

FAKE = """#!{python}
import json, os, sys
name = os.path.basename(sys.argv[0])
with open(os.environ["CALLED"], "a") as file:
    file.write(json.dumps([name, *sys.argv[1:]]) + "\\n")
if os.environ.get("FAILS", "nothing") in " ".join([name, *sys.argv[1:]]):
    sys.exit(f"{{name}}: no")
if "describe" in sys.argv or any("host_status" in word for word in sys.argv):
    with open(os.environ["ANSWERS"]) as file:
        answers = file.read().splitlines()
    with open(os.environ["ANSWERS"], "w") as file:
        file.write("\\n".join(answers[1:]))
    print(answers[0] if answers else "ACTIVE")
"""


class Tools:
    """Fakes of gcloud, xpk, docker and git that record their calls; the settings file is empty."""

    def __init__(self, folder: Path):
        self._folder, self._called = folder, folder / "called"
        (folder / "bin").mkdir()
        for name in ("gcloud", "xpk", "docker", "git"):
            (folder / "bin" / name).write_text(FAKE.format(python=sys.executable))
            (folder / "bin" / name).chmod(0o755)
        (folder / "empty.env").touch()
        self.environment = {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "HOME": str(folder),
            "TMPDIR": str(folder),
            "CALLED": str(self._called),
            "ANSWERS": str(folder / "answers"),
        }
        self.answer()

    def answer(self, *answers: str) -> None:
        """Set what gcloud answers to its next questions about a state, in this order."""
        Path(self.environment["ANSWERS"]).write_text("\n".join(answers))

    def call(self, script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        name, *verb = script.split()
        command = [
            shutil.which("bash") or "bash",
            str(SCRIPTS / name),
            *verb,
            "--env",
            str(self._folder / "empty.env"),
            *arguments,
        ]
        return subprocess.run(
            command,
            cwd=self._folder,
            env=self.environment | environment,
            text=True,
            capture_output=True,
            check=False,
            timeout=60,
        )

    def called(self) -> list[list[str]]:
        lines = self._called.read_text().splitlines() if self._called.exists() else []
        self._called.unlink(missing_ok=True)
        calls = [[str(word) for word in json.loads(line)] for line in lines]
        return [call for call in calls if call[0] != "git" or "archive" in call]


@pytest.fixture
def tools(tmp_path: Path) -> Tools:
    return Tools(tmp_path)


def arguments_of(script: str, without: str | None = None) -> list[str]:
    flags, rest = CALLS[script]
    return [word for name in flags if name != without for word in (f"--{name}", flags[name])] + rest


def dry_run(tools: Tools, script: str) -> list[list[str]]:
    done = tools.call(script, "--dry-run", *arguments_of(script))
    assert done.returncode == 0, done.stderr
    assert not tools.called(), "a dry run called a tool"
    return [shlex.split(line) for line in done.stdout.splitlines()]


def flag(command: list[str], name: str) -> str:
    values = [word.partition("=")[2] for word in command if word.startswith(f"--{name}=")]
    assert len(values) == 1, command
    return values[0]


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.sh")), ids=lambda script: script.name)
def test_bash_and_shellcheck_accept_every_script(script: Path):
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert shellcheck, "shellcheck is missing: pip install -e '.[dev]'"
    for command in (["bash", "-n"], [shellcheck]):
        done = subprocess.run([*command, script], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    assert os.access(script, os.X_OK)


def test_every_user_script_has_an_entry_in_calls():
    user_scripts = {
        path.name for path in SCRIPTS.glob("*.sh") if not path.name.startswith(("host_", "common"))
    }
    assert user_scripts == {script.split()[0] for script in CALLS}


@pytest.mark.parametrize("script", CALLS)
def test_every_command_names_the_project_zone_and_pod(tools: Tools, script: str):
    flags = CALLS[script][0]
    for command in dry_run(tools, script):
        if command[0] in ("gcloud", "xpk"):
            assert flag(command, "project") == "my-project"
        if command[:3] == ["gcloud", "compute", "tpus"] or command[0] == "xpk":
            assert flag(command, "zone") == "us-west4-a"
            assert any(re.search(r"\bmy-pod\b", word) for word in command)
    assert flags


@pytest.mark.parametrize("script", [script for script in CALLS if script != "resume.sh"])
def test_a_dry_run_prints_the_commands_that_a_real_run_calls(tools: Tools, script: str):
    expected = [command for command in dry_run(tools, script) if command[0] != "mkdir"]
    done = tools.call(script, *arguments_of(script))
    assert done.returncode == 0, done.stderr
    assert tools.called() == expected


@pytest.mark.parametrize("script", CALLS)
def test_a_missing_or_unknown_flag_prints_one_line(tools: Tools, script: str):
    optional = {"poll", "out"}
    for name in CALLS[script][0].keys() - optional:
        done = tools.call(script, *arguments_of(script, without=name))
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert f"--{name} is missing" in done.stderr
    done = tools.call(script, *arguments_of(script), "--sport")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert not tools.called()


@pytest.mark.parametrize("script", [script for script in CALLS if script != "resume.sh"])
def test_a_failing_tool_makes_the_script_fail(tools: Tools, script: str):
    tool = {"xpk.sh image": "docker"}.get(script, "xpk" if script.startswith("xpk") else "gcloud")
    assert tools.call(script, *arguments_of(script), FAILS=tool).returncode == 1


@pytest.mark.parametrize("script", CALLS)
def test_a_dry_run_needs_no_tools(tools: Tools, script: str, tmp_path: Path):
    (tmp_path / "bare").mkdir()
    for tool in ("bash", "dirname", "mktemp", "rm", "sed"):
        (tmp_path / "bare" / tool).symlink_to(shutil.which(tool) or tool)
    (tmp_path / "bare" / "git").symlink_to("/bin/true")
    bare = str(tmp_path / "bare")
    done = tools.call(script, *arguments_of(script), PATH=bare)
    assert done.returncode == 2
    assert re.fullmatch(rf"{script.split()[0]}: \w+ is not installed: .*\n", done.stderr)
    done = tools.call(script, "--dry-run", *arguments_of(script), PATH=bare)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("script", CALLS)
def test_help_shows_the_usage(tools: Tools, script: str):
    done = tools.call(script.split()[0], "--help") if " " not in script else tools.call(script, "--help")
    assert done.returncode == 0
    assert f"scripts/tpu/{script.split()[0]} " in done.stdout
    assert "--dry-run" in done.stdout


def test_flags_take_precedence_over_the_settings_file(tools: Tools, tmp_path: Path):
    file = tmp_path / "my.env"
    example = (SCRIPTS / "pod.env.example").read_text()
    file.write_text(example.replace("SPOT=", "SPOT=yes"))
    done = tools.call("create.sh", "--env", str(file), "--name=other", "--dry-run")
    command = shlex.split(done.stdout)
    assert "other" in command
    assert "--spot" in command
    assert flag(command, "project") == "my-project"
    assert flag(command, "accelerator-type") == "v5litepod-16"


def test_the_train_command_reaches_the_host_unchanged(tools: Tools):
    for script, start in (
        ("start.sh", "host_start.sh"),
        ("resume.sh", "host_start.sh"),
        ("xpk.sh start", ""),
    ):
        command = dry_run(tools, script)[-1]
        on_host = shlex.split(flag(command, "command"))
        assert on_host[-len(TRAIN) :] == TRAIN
        assert any(start in word for word in on_host)
    config = load_config(TrainConfig, ROOT / TRAIN[3], TRAIN[4:])
    assert config.validation.prompt == ["A robot, on the beach", "It's $HOME, 100%"]
    assert config.checkpoint_folder == "gs://my-bucket/runs/sd14_motion/checkpoints"


def test_resume_recreates_a_preempted_pod(tools: Tools):
    expected = dry_run(tools, "resume.sh")
    tools.answer("SUSPENDED", "WAITING_FOR_RESOURCES", "ACTIVE", "fyp:none", "ACTIVE", "fyp:finished")
    done = tools.call("resume.sh", *arguments_of("resume.sh"))
    assert done.returncode == 0, done.stderr
    describe, ask = expected[0], expected[4]
    assert "host_status.sh sd14_motion" in flag(ask, "command")
    assert tools.called() == [
        *expected[:3],
        *(describe, describe, ask),
        *expected[5:],
        *(describe, ask),
    ]


def test_resume_leaves_a_running_training_alone(tools: Tools):
    tools.answer("ACTIVE", "fyp:running fyp:running", "ACTIVE", "fyp:finished fyp:finished")
    done = tools.call("resume.sh", *arguments_of("resume.sh"))
    assert done.returncode == 0, done.stderr
    assert not [call for call in tools.called() if {"create", "delete", "scp"} & set(call)]


@pytest.mark.parametrize(
    ("failing", "message"),
    [("describe", "gcloud: no"), ("nothing", "training failed"), ("scp", "gcloud: no")],
)
def test_resume_stops_after_five_failures(tools: Tools, failing: str, message: str):
    status = "fyp:none" if failing == "scp" else "fyp:running fyp:failed with status 1"
    tools.answer(*(["ACTIVE", status] * 9))
    done = tools.call("resume.sh", *arguments_of("resume.sh"), FAILS=failing)
    assert done.returncode == 1
    assert done.stderr.count(message) == 5
    assert done.stderr.endswith("five failures in a row\n")


class Host:
    """A folder with the files of a host, and a folder that stands for the bucket."""

    def __init__(self, folder: Path, number: int = 0):
        (folder / "fyp_jax" / "scripts" / "tpu").mkdir(parents=True)
        for script in SCRIPTS.glob("host_*.sh"):
            shutil.copy(script, folder / "fyp_jax" / "scripts" / "tpu")
        self.project, self.bucket = folder / "fyp_jax", folder / "bucket"
        self.bucket.mkdir(exist_ok=True)
        self._environment = os.environ | {"TPU_WORKER_ID": str(number), "FYP_BUCKET": str(self.bucket)}

    def start(self, program: str) -> subprocess.Popen[bytes]:
        run = self.project / "scripts" / "tpu" / "host_run.sh"
        return subprocess.Popen([run, "a_run", "bash", "-c", program], env=self._environment)

    def status(self) -> str:
        return (self.project / "runs" / "a_run.status").read_text().strip()


LOG = "echo {row} >> runs/a_run/metrics.csv; "


def test_a_host_copies_the_log_to_the_bucket_and_records_how_the_run_ended(tmp_path: Path):
    host = Host(tmp_path)
    assert host.start(LOG.format(row="first")).wait() == 0
    assert host.status() == "fyp:finished"
    copy = host.bucket / "runs" / "a_run" / "log" / "metrics.csv"
    assert copy.read_text() == "first\n"
    shutil.rmtree(host.project)
    again = Host(tmp_path)  # a new disk with the same bucket
    assert again.start(LOG.format(row="second") + "exit 3").wait() == 3
    assert again.status() == "fyp:failed with status 3"
    assert copy.read_text() == "first\nsecond\n"


def test_hosts_other_than_0_copy_nothing(tmp_path: Path):
    host = Host(tmp_path, number=1)
    assert host.start(LOG.format(row="first")).wait() == 0
    assert not list(host.bucket.iterdir())


def test_a_host_that_gets_sigterm_records_the_run_as_stopped(tmp_path: Path):
    host = Host(tmp_path)
    program = (
        "trap 'touch runs/a_run/saved; exit 0' TERM; touch runs/a_run/ready; while sleep 0.1; do :; done"
    )
    process = host.start(program)
    until = time.monotonic() + 30
    while not (host.project / "runs" / "a_run" / "ready").exists():
        assert time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM
    assert host.status() == "fyp:stopped"
    assert (host.bucket / "runs" / "a_run" / "log" / "saved").exists()


def test_a_host_starts_one_service_with_unchanged_arguments(tmp_path: Path):
    """With fakes of systemd: the program gets every override as it was given, whatever characters it has."""
    host, tools = Host(tmp_path), tmp_path / "bin"
    tools.mkdir()
    for name, body in {
        "sudo": 'exec "$@"',
        "systemctl": '[ "$1 $3" = "is-active fyp-train" ] && [ -e "$HOME/active" ]',
        "mountpoint": "true",
        "systemd-run": 'echo "$@" >> "$HOME/units"; exec "${@: -2:1}" "${@: -1}"',
    }.items():
        (tools / name).write_text(f"#!/bin/bash\n{body}\n")
        (tools / name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "TPU_WORKER_ID": "0",
        "FYP_BUCKET": str(host.bucket),
    }
    words = [*OVERRIDES, "a%b=$$x", "two\nlines", "it's"]
    program = ["bash", "-c", 'printf "%s\\0" "$@" > runs/a_run/words', "train", *words]
    command = [host.project / "scripts" / "tpu" / "host_start.sh", "my-bucket", "a_run", *program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (host.bucket / "runs" / "a_run" / "log" / "words").read_text().split("\0")[:-1] == words
    assert host.status() == "fyp:finished"
    assert "--unit=fyp-train" in (tmp_path / "units").read_text()
    (tmp_path / "active").touch()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert (tmp_path / "units").read_text().count("\n") == 1


def guide_commands() -> list[list[str]]:
    """The commands in the guide's code blocks, each as a list of words; continued lines are joined."""
    blocks = re.findall(r"^```(?:bash)?\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def test_the_commands_of_the_guide_run(tools: Tools):
    commands = guide_commands()
    assert {"train.py", "sample.py"} & {words[1] for words in commands if words[0] == "python"}
    for words in commands:
        if words[0] == "python":
            config = words[words.index("--config") + 1] if "--config" in words else None
            kind = SampleConfig if words[1] == "sample.py" else TrainConfig
            if config:
                load_config(kind, ROOT / config, [word for word in words if re.match(r"[a-z_.]+=", word)])
            assert (ROOT / words[1]).is_file(), words
        elif words[0].startswith("scripts/tpu/"):
            env = tools.environment["HOME"] + "/pod.env"
            shutil.copy(SCRIPTS / "pod.env.example", env)
            script = " ".join([Path(words[0]).name, *(words[1:2] if "xpk" in words[0] else [])])
            rest = words[2:] if "xpk" in words[0] else words[1:]
            done = tools.call(script, "--env", env, "--dry-run", *rest)
            assert done.returncode == 0, f"{words}: {done.stderr}"
            overrides = [word for word in rest if re.match(r"[a-z_.]+=", word)]
            if overrides:
                load_config(TrainConfig, ROOT / rest[rest.index("--config") + 1], overrides)
    called = {Path(words[0]).name for words in commands if words[0].startswith("scripts/tpu/")}
    assert called >= {script.split()[0] for script in CALLS}
