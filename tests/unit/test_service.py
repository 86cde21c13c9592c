"""Workers that stay up: what systemd and launchd are given, where, and who may read it."""

import os
import plistlib
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gptjobs import service, settings
from gptjobs.errors import GptjobsError, NotFound, Refused
from gptjobs.service.launchd import Launchd
from gptjobs.service.service import Service, Wanted, environment_text
from gptjobs.service.systemd import Systemd

SECRET = "redis://worker:pass%word'$HOME\"@host:6379/0"
STAND_IN = """#!{python}
import pathlib, sys
here = pathlib.Path({folder!r})
with (here / "asked").open("a") as asked:
    print(*sys.argv[1:], file=asked)
words = [each for each in sys.argv[1:] if not each.startswith("--")]
loaded = here / "loaded"
if (here / "refuses").exists() and (here / "refuses").read_text() in words:
    sys.exit("it does not")
if words[0] == "bootstrap" and loaded.exists():
    sys.exit("Bootstrap failed: 5: Input/output error")
elif words[0] in ("restart", "bootstrap"):
    loaded.touch()
elif words[0] in ("stop", "bootout"):
    loaded.unlink(missing_ok=True)
elif words[0] == "is-active" or (words[0] == "print" and words[1].count("/") > 1 - words[1].startswith("system")):
    print("state = running")
    sys.exit(0 if loaded.exists() else 3)
"""
"""For systemctl and launchctl: writes down what it is asked, and knows whether a worker is loaded."""


class Host:
    """A home, the host's own folders, and a stand-in for the service manager."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root = folder, folder / "a root"
        self.root.mkdir()
        for name in ("systemctl", "launchctl"):
            (folder / "bin").mkdir(exist_ok=True)
            program = folder / "bin" / name
            program.write_text(STAND_IN.format(python=sys.executable, folder=str(folder)))
            program.chmod(0o755)

    def __call__(self, kind: type[Service], name: str = "mac", *, is_system: bool = False) -> Service:
        return kind(name, is_system=is_system, home=self.folder / "home", top=self.folder / "top")

    def wanted(self, *options: str) -> Wanted:
        command = ["/opt/a b/python", "-m", "gptjobs", "worker", "start", *options]
        environment = {"GPTJOBS_REDIS_URL": SECRET, "GPTJOBS_ROOT": str(self.root)}
        return Wanted(command=command, environment=environment, root=self.root)

    def asked(self) -> list[str]:
        said = (self.folder / "asked").read_text().splitlines()
        (self.folder / "asked").unlink()
        return said


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    made = Host(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return made


@pytest.fixture
def owner(host: Host) -> int:
    """Of the storage root: a user whom this host knows, other than root."""
    if os.geteuid() != 0:
        pytest.skip("needs to give folders away: root alone can")
    os.chown(host.root, 1, -1)
    return 1


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("kind", [Systemd, Launchd])
def test_the_password_is_in_no_definition_and_in_a_file_that_its_user_alone_can_read(
    kind: type[Service], host: Host
) -> None:
    before = os.umask(0)
    try:
        made = host(kind)
        made.install(host.wanted())
    finally:
        os.umask(before)
    assert mode(made.environment_file) == 0o600
    assert b"pass%" not in made.definition_file.read_bytes()
    assert "pass%" not in "".join(host.asked())


def test_the_file_with_the_password_is_never_open_to_others_for_a_moment(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[tuple[int, int]] = []
    really = os.open

    def spy(path: Any, flags: int, mode: int = 0o777, **options: Any) -> int:
        if ".env" in str(path):
            opened.append((flags & os.O_EXCL, mode))
        return really(path, flags, mode, **options)

    monkeypatch.setattr(os, "open", spy)
    made = host(Systemd)
    made.environment_file.parent.mkdir(parents=True)
    made.environment_file.write_text("another's, open to all")
    made.install(host.wanted())
    assert opened == [(os.O_EXCL, 0o600)]
    assert mode(made.environment_file) == 0o600


def test_a_shell_reads_the_environment_as_it_was(host: Host, tmp_path: Path) -> None:
    values = {"GPTJOBS_REDIS_URL": SECRET, "GPTJOBS_ROOT": "/a b/`id`\\n $(id)", "PATH": "/usr/bin:/bin"}
    file = tmp_path / "env"
    file.write_text(environment_text(values))
    from gptjobs.service.launchd import WITH_ENVIRONMENT

    program = (
        "import os; print(*(os.environ[name] for name in sorted(os.environ) if name[:3] in ('GPT', 'PAT')), sep='\\n')"
    )
    command = ["/bin/sh", "-c", WITH_ENVIRONMENT, str(file), sys.executable, "-c", program]
    told = subprocess.run(command, capture_output=True, text=True, env={}, check=True)
    assert told.stdout.splitlines() == [values[name] for name in sorted(values)]


def verify(text: bytes, folder: Path, *, of_user: bool) -> str:
    """What systemd has against a unit."""
    unit = folder / "units" / "gptjobs-mac.service"
    unit.parent.mkdir()
    unit.write_bytes(text.replace(b"/opt/a b/python", sys.executable.encode()))
    (folder / "env").write_text("")
    words = ["--user"] if of_user else []
    told = subprocess.run(
        ["systemd-analyze", "verify", *words, str(unit)],
        capture_output=True, text=True, env={**os.environ, "XDG_RUNTIME_DIR": str(folder)},
    )  # fmt: skip
    return told.stdout + told.stderr


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed here")
def test_systemd_has_nothing_against_a_users_unit(host: Host, tmp_path: Path) -> None:
    text = host(Systemd).definition(host.wanted("--log", '/a $HOME/100%/"b".log'))
    assert verify(text, tmp_path, of_user=True) == ""


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed here")
def test_systemd_has_nothing_against_the_hosts_unit(host: Host, owner: int, tmp_path: Path) -> None:
    text = host(Systemd, is_system=True).definition(host.wanted())
    assert verify(text, tmp_path, of_user=False) == ""


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed here")
def test_systemd_would_have_something_against_a_word_that_it_does_not_know(host: Host, tmp_path: Path) -> None:
    text = host(Systemd).definition(host.wanted()).replace(b"OOMPolicy", b"OomPolicy")
    assert "OomPolicy" in verify(text, tmp_path, of_user=True)


def test_a_units_command_means_what_was_typed(host: Host) -> None:
    unit = host(Systemd).definition(host.wanted("--log", '/a $HOME/100%/"b"\\.log')).decode()
    command = next(line for line in unit.splitlines() if line.startswith("ExecStart="))
    assert command.startswith('ExecStart="/opt/a b/python" -m gptjobs worker start ')
    assert command.endswith('"/a $$HOME/100%%/\\"b\\"\\\\.log"')


def test_a_unit_lets_jobs_write_checkpoints_and_outlives_a_trainer_that_runs_out_of_memory(host: Host) -> None:
    lines = host(Systemd).definition(host.wanted()).decode().splitlines()
    assert {"KillMode=mixed", "KillSignal=SIGTERM", "TimeoutStopSec=330", "OOMPolicy=continue"} <= set(lines)


def test_a_unit_of_the_host_runs_as_the_owner_of_the_storage_root(host: Host, owner: int) -> None:
    made = host(Systemd, is_system=True)
    made.install(host.wanted())
    text = made.definition_file.read_text()
    assert "\nUser=daemon\n" in text
    assert f'\nRequiresMountsFor="{host.root}"\n' in text
    assert (made.environment_file.stat().st_uid, mode(made.environment_file)) == (owner, 0o600)
    assert not any("--user" in each for each in host.asked())


def test_no_worker_of_the_host_runs_as_root(host: Host) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root owns what root's is")
    with pytest.raises(Refused) as error:
        host(Systemd, is_system=True).install(host.wanted())
    assert (error.value.hint or "").startswith("chown")
    assert not (host.folder / "top").exists()


def test_systemd_is_told_to_start_it_now_and_with_the_host(host: Host) -> None:
    made = host(Systemd)
    made.install(host.wanted())
    assert made.definition_file == host.folder / "home/.config/systemd/user/gptjobs-mac.service"
    assert host.asked() == [
        "--user daemon-reload", "--user enable gptjobs-mac.service", "--user restart gptjobs-mac.service",
    ]  # fmt: skip
    assert made.is_up()


def test_launchd_is_told_to_start_it_now_and_at_each_login(host: Host) -> None:
    made = host(Launchd)
    made.install(host.wanted())
    domain = f"gui/{os.getuid()}"
    assert made.definition_file == host.folder / "home/Library/LaunchAgents/gptjobs.mac.plist"
    asked = host.asked()
    assert asked[-2:] == [f"enable {domain}/gptjobs.mac", f"bootstrap {domain} {made.definition_file}"]
    assert made.is_up()
    content = plistlib.loads(made.definition_file.read_bytes())
    assert content["Label"] == "gptjobs.mac"
    assert (content["RunAtLoad"], content["KeepAlive"], content["ExitTimeOut"]) == (
        True,
        {"SuccessfulExit": False},
        330,
    )


def test_launchd_runs_it_with_its_environment_file_and_a_log_that_rotates(host: Host) -> None:
    made = host(Launchd)
    made.install(host.wanted("--name", "mac"))
    content = plistlib.loads(made.definition_file.read_bytes())
    logs = host.folder / "home/Library/Logs/gptjobs"
    command = content["ProgramArguments"]
    assert command[3:] == [
        str(made.environment_file),
        *host.wanted("--name", "mac").command,
        "--log",
        str(logs / "mac.log"),
    ]
    assert content["StandardErrorPath"] == str(logs / "mac.start.log")
    assert logs.is_dir()
    assert content["WorkingDirectory"] == str(host.root)


def test_launchd_does_not_put_it_on_the_slow_cores(host: Host) -> None:
    assert plistlib.loads(host(Launchd).definition(host.wanted()))["ProcessType"] == "Interactive"


def test_a_daemon_of_the_mac_runs_as_the_owner_of_the_storage_root(host: Host, owner: int) -> None:
    made = host(Launchd, is_system=True)
    made.install(host.wanted())
    assert plistlib.loads(made.definition_file.read_bytes())["UserName"] == "daemon"
    assert (host.folder / "top/Library/Logs/gptjobs").stat().st_uid == owner
    assert made.environment_file.stat().st_uid == owner
    assert host.asked()[-1] == f"bootstrap system {made.definition_file}"


@pytest.mark.parametrize("kind", [Systemd, Launchd])
def test_installing_again_changes_it_in_place_and_starts_it_anew(kind: type[Service], host: Host) -> None:
    made = host(kind)
    made.install(host.wanted("--slots", "1"))
    before = host.asked()
    made.install(host.wanted("--slots", "2"))
    after = host.asked()
    assert b"2" in made.definition_file.read_bytes()
    assert made.installed() == ["mac"]
    assert after[-1] == before[-1]
    assert made.is_up()


@pytest.mark.parametrize("kind", [Systemd, Launchd])
def test_an_uninstalled_worker_has_ended_and_leaves_neither_definition_nor_password(
    kind: type[Service], host: Host
) -> None:
    made = host(kind)
    made.install(host.wanted())
    made.uninstall()
    assert not made.is_up()
    assert not made.definition_file.exists()
    assert not made.environment_file.exists()
    assert any("stop" in each or "bootout" in each for each in host.asked())


@pytest.mark.parametrize("kind", [Systemd, Launchd])
def test_a_worker_that_does_not_end_stays_installed(
    kind: type[Service], host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptjobs.service.launchd.STOP_LIMIT_S", 0.0)
    made = host(kind)
    made.install(host.wanted())
    (host.folder / "refuses").write_text("stop" if kind is Systemd else "bootout")
    with pytest.raises(GptjobsError):
        made.uninstall()
    assert made.definition_file.exists()
    assert made.environment_file.exists()


def test_uninstalling_what_is_not_there_names_what_is(host: Host) -> None:
    host(Systemd, "one").install(host.wanted())
    with pytest.raises(NotFound) as error:
        host(Systemd, "two").uninstall()
    assert error.value.hint == "--name: one"


@pytest.mark.parametrize("kind", [Systemd, Launchd])
def test_a_host_where_nothing_keeps_workers_up_is_told_what_to_type(
    kind: type[Service], host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Refused) as error:
        host(kind).check()
    assert kind.program in error.value.message
    assert "gptjobs worker start" in (error.value.hint or "")


@pytest.mark.parametrize(("kind", "word"), [(Systemd, "show"), (Launchd, "print")])
def test_a_service_manager_that_does_not_answer_is_a_refusal_in_its_words(
    kind: type[Service], word: str, host: Host
) -> None:
    (host.folder / "refuses").write_text(word)
    with pytest.raises(Refused) as error:
        host(kind).check()
    assert "it does not" in error.value.message


def test_the_service_is_that_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    for system, kind in (("Linux", Systemd), ("Darwin", Launchd)):
        monkeypatch.setattr("platform.system", lambda system=system: system)
        assert isinstance(service.on_this_host("mac", is_system=False), kind)


def test_a_service_is_told_what_workers_go_by_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "url").write_text("redis://:secret@host:6379/0")
    for name in set(settings._OF_WORKERS) - {"PATH"}:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GPTJOBS_REDIS_URL_FILE", "url")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setenv("BATCH_SIZE", "32")
    told = settings.service_environment(settings.load(tmp_path))
    assert told.pop("PATH")
    assert told == {
        "GPTJOBS_ROOT": str(tmp_path), "GPTJOBS_REDIS_URL_FILE": str(tmp_path / "url"), "CUDA_VISIBLE_DEVICES": "1",
        "PYTHONSAFEPATH": "1",
    }  # fmt: skip


def test_the_url_of_the_roots_own_server_is_looked_up_at_each_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GPTJOBS_REDIS_URL", "GPTJOBS_REDIS_URL_FILE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / ".gptjobs").mkdir()
    (tmp_path / ".gptjobs" / "redis-url").write_text("redis://:secret@127.0.0.1:5000/0")
    assert not any("REDIS" in name for name in settings.service_environment(settings.load(tmp_path)))
