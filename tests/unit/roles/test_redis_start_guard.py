"""The start-up guard of the role redis, as the unit runs it, on files that a real redis-server has written."""

from __future__ import annotations

import getpass
import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
BASE, INCR, MANIFEST = "appendonly.aof.2.base.rdb", "appendonly.aof.2.incr.aof", "appendonly.aof.manifest"


@pytest.fixture
def guard(tmp_path):
    """``guard("check"|"record")`` runs it as the unit does: (may Redis start, what it said)."""
    home, etc = tmp_path / "guard", tmp_path / "etc"
    home.mkdir()
    etc.mkdir()
    shutil.copy(ROOT / "roles/redis/files/start_guard.py", home)
    shutil.copy(ROOT / "plugins/module_utils/aof.py", home)
    (etc / "redis.conf").write_text("# Redis rewrites this one\nreplicaof 192.0.2.1 6379\nappendonly no\n")

    def run(action, *settings):
        lines = ["appendonly yes", f'dir "{tmp_path / "data"}"', 'requirepass "a \'secret"', *settings]
        (etc / "settings.conf").write_text("\n".join(lines) + "\n")
        done = subprocess.run(
            [
                sys.executable,
                "-B",
                home / "start_guard.py",
                action,
                getpass.getuser(),
                etc / "redis.conf",
                etc / "settings.conf",
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert "Traceback" not in done.stderr and "secret" not in done.stderr, done.stderr
        return done.returncode == 0, done.stderr

    run.record, run.accept = etc / "data-seen.json", etc / "accept-loss-once"
    return run


@pytest.fixture
def data(tmp_path, aof_data):
    return shutil.copytree(aof_data, tmp_path / "data")


def test_from_the_first_start_on(guard, tmp_path, redis_server):
    data = tmp_path / "data"
    data.mkdir()
    assert guard("check") == (True, "")
    server = redis_server(data)
    assert server.start()
    assert guard("record") == (True, "") and "appendonly.aof.1.base.rdb" in guard.record.read_text()
    assert guard("check") == (True, "")
    server.client().set("key", "value")
    server.stop()
    assert guard("check") == (True, "")

    # From now on nothing is not new any more.
    shutil.rmtree(data / "appendonlydir")
    for _start in range(2):
        may, said = guard("check")
        assert not may and "was here at an earlier start" in said and f"touch {guard.accept}" in said
    guard.accept.touch()
    may, said = guard("check")
    assert may and "Started all the same" in said
    assert guard("check")[0]  # until a start has succeeded
    assert server.start()
    assert guard("record")[0] and not guard.accept.exists()
    server.stop()
    assert guard("check") == (True, "")
    shutil.rmtree(data / "appendonlydir")
    assert not guard("check")[0]


def cut(path, count=5):
    path.write_bytes(path.read_bytes()[:-count])


def middle(path, old, new):
    content = path.read_bytes()
    half = len(content) // 2
    path.write_bytes(content[:half] + content[half:].replace(old, new, 1))


# name: (damage, words of the refusal); with each of them Redis would lose data at this start or the next one, or
# would refuse it without saying what to do
REFUSED = {
    "manifest missing": (lambda folder: (folder / MANIFEST).unlink(), "orphan_files"),
    "manifest empty": (lambda folder: (folder / MANIFEST).write_bytes(b""), "bad_manifest"),
    "manifest without its incr": (
        lambda folder: (folder / MANIFEST).write_bytes((folder / MANIFEST).read_bytes().splitlines(True)[0]),
        "bad_manifest",
    ),
    "manifest without its base": (
        lambda folder: (folder / MANIFEST).write_bytes((folder / MANIFEST).read_bytes().splitlines(True)[1]),
        "bad_manifest",
    ),
    "base missing": (lambda folder: (folder / BASE).unlink(), "missing_file"),
    "base cut": (lambda folder: cut(folder / BASE), "corrupt"),
    "framing broken in the middle": (lambda folder: middle(folder / INCR, b"\r\n*3\r\n", b"\r\n?3\r\n"), "corrupt"),
    "length broken in the middle": (
        lambda folder: middle(folder / INCR, b"\r\n$9\r\nvalue", b"\r\n$99999\r\nvalue"),
        "corrupt",
    ),
    "newer data beside the manifest": (
        lambda folder: shutil.copy(folder / INCR, folder / "appendonly.aof.3.incr.aof"),
        "orphan_files",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_with_a_reason(case, guard, data):
    damage, verdict = REFUSED[case]
    assert guard("check") == (True, "")
    damage(data / "appendonlydir")
    before = sorted((path.name, path.read_bytes()) for path in (data / "appendonlydir").iterdir())
    may, said = guard("check")
    assert not may and f"{verdict} in {data}" in said and "What to do:" in said
    assert sorted((path.name, path.read_bytes()) for path in (data / "appendonlydir").iterdir()) == before


def test_a_hole_does_not_heal_by_the_second_start(guard, tmp_path, aof_data_two_increments, redis_server):
    data = shutil.copytree(aof_data_two_increments, tmp_path / "data")
    assert guard("check") == (True, "")
    cut(data / "appendonlydir" / "appendonly.aof.1.incr.aof")
    for _start in range(3):
        may, said = guard("check")
        assert not may and "not the last one" in said


def test_files_made_anew_behind_its_back(guard, data, redis_server):
    assert guard("record")[0]
    shutil.rmtree(data / "appendonlydir")
    server = redis_server(data)
    assert server.start()
    server.stop()
    may, said = guard("check")
    assert not may and "started_empty" in said


def test_a_snapshot_alone_would_be_ignored(guard, data, redis_server):
    shutil.rmtree(data / "appendonlydir")
    server = redis_server(data, "appendonly no")
    assert server.start()
    server.client().save()
    assert guard("check") == (True, "")  # a snapshot without keys: nothing to lose
    server.client().set("key", "value")
    server.client().save()
    server.stop()
    may, said = guard("check")
    assert not may and "snapshot" in said


def test_an_unfinished_end_is_for_redis_to_drop(guard, data):
    cut(data / "appendonlydir" / INCR)
    may, said = guard("check")
    assert may and "unfinished command (SET). Redis drops them." in said
    may, said = guard("check", "aof-load-truncated no")
    assert not may and "truncated_tail" in said


def test_not_asked_about(guard, data):
    (data / "appendonlydir" / MANIFEST).unlink()
    assert guard("check", "appendonly no") == (True, "")
    shutil.rmtree(data / "appendonlydir")
    (data / "appendonly.aof").write_bytes(b"*1\r\n$4\r\nPING\r\n")  # of before Redis 7, which converts it
    assert guard("check") == (True, "")


def test_a_broken_record_does_not_keep_redis_down(guard, data):
    guard.record.write_text("{")
    may, said = guard("check")
    assert may and "going on without it" in said


def test_as_another_user_it_says_what_cannot_be_read(guard, data, tmp_path):
    assert os.geteuid() == 0, "this test changes users, so it has to run as root"
    path = tmp_path / "data"
    while path != path.parent:
        path.chmod(path.stat().st_mode | 0o055)
        path = path.parent
    for file in (tmp_path / "etc", tmp_path / "guard"):
        file.chmod(0o755)
    assert guard("check")[0]  # writes settings.conf
    (data / "appendonlydir" / BASE).chmod(0o600)
    done = subprocess.run(
        [
            "/usr/bin/python3",
            "-B",
            tmp_path / "guard/start_guard.py",
            "check",
            "nobody",
            tmp_path / "etc/redis.conf",
            tmp_path / "etc/settings.conf",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "unreadable" in done.stderr and BASE in done.stderr


def load(tmp_path):
    """The guard as a module, to call it with other bounds."""
    sys.path.insert(0, str(tmp_path / "guard"))
    try:
        spec = importlib.util.spec_from_file_location("start_guard", tmp_path / "guard/start_guard.py")
        guard = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(guard)
        return guard
    finally:
        sys.path.pop(0)
        sys.modules.pop("aof", None)


def test_beyond_the_bounds_the_rules_alone_decide(guard, data, tmp_path, capsys):
    program = load(tmp_path)
    settings = program.settings_of([f"appendonly yes\ndir {data}"])
    places = (str(guard.record), str(guard.accept))
    middle(data / "appendonlydir" / INCR, b"\r\n*3\r\n", b"\r\n?3\r\n")
    for bound in ({"MOST_BYTES": 100}, {"MOST_SECONDS": 0}):
        original = {name: getattr(program, name) for name in bound}
        program.__dict__.update(bound)
        assert program.check(settings, *places)
        assert "manifest, names and sizes were looked at" in capsys.readouterr().err
        program.__dict__.update(original)
    assert not program.check(settings, *places)
    program.MOST_BYTES = 100
    (data / "appendonlydir" / MANIFEST).write_bytes(b"")
    assert not program.check(settings, *places)


def test_64_megabytes_take_little_time(guard, data):
    command = b"*3\r\n$5\r\nRPUSH\r\n$9\r\nconv:1234\r\n$500\r\n" + b"x" * 500 + b"\r\n"
    with open(data / "appendonlydir" / INCR, "ab") as file:
        file.write(command * (64_000_000 // len(command)))
    started = time.monotonic()
    assert guard("check") == (True, "")
    assert time.monotonic() - started < 10  # 0.3 s on an idle core


def test_the_unit_runs_it_before_each_start_with_the_files_of_redis():
    unit = (ROOT / "roles/redis/templates/unit.conf.j2").read_text()
    lines = dict(line.partition("=")[::2] for line in unit.splitlines() if line.startswith("Exec"))
    files = [
        word for word in lines["ExecStart"].replace("{{ _redis_directory }}", "D").split() if word.endswith(".conf")
    ]
    assert files == ["D/redis.conf", "D/settings.conf"]
    for name, action in (("ExecStartPre", "check"), ("ExecStartPost", "record")):
        line = lines[name].replace("{{ _redis_directory }}", "D").replace("{{ _redis_guard }}", "G")
        assert line.endswith(f"+/usr/bin/python3 -B G/start_guard.py {action} redis D/redis.conf D/settings.conf")
    assert lines["ExecStartPre"].startswith("+")
