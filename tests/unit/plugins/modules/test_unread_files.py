"""unread_files beside a real process with a child, and a systemctl that names it."""

import os
import shutil
import subprocess
import sys
import time

import pytest

from ansible_collections.openclaw.ha.plugins.module_utils import processes
from ansible_collections.openclaw.ha.plugins.modules import unread_files

#: Starts a child for each line that it is told, as a master does at a reload.
MASTER = """
import subprocess, sys
children = []
for line in sys.stdin:
    children.append(subprocess.Popen(["cat"], stdin=subprocess.PIPE))
    print("started", flush=True)
"""


class Master:
    def __init__(self):
        self.process = subprocess.Popen([sys.executable, "-c", MASTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.reload()

    def reload(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "started\n"

    def close(self):
        self.process.communicate()


@pytest.fixture
def master():
    running = Master()
    yield running
    running.close()


@pytest.fixture
def look(run_module, program, monkeypatch, master, tmp_path):
    def ask(paths, pid=None, changed="", **options):
        shown = f"MainPID={master.process.pid if pid is None else pid}\nStateChangeTimestamp={changed}\n"
        path = program("systemctl", f"print({shown!r}, end='')")
        monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")
        return run_module(unread_files, unit="engine.service", paths=[str(one) for one in paths], **options)

    return ask


def written(path, seconds):
    """A file that was written so many seconds from now."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")
    os.utime(path, (time.time() + seconds,) * 2)
    return path


def test_the_start_of_a_process_is_known():
    before = time.time()
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        assert before - processes.EXACT <= processes.started(child.pid) <= time.time() + processes.EXACT
        assert processes.parent(child.pid) == os.getpid() and child.pid in processes.children(os.getpid())
        child.stdin.close()
    assert processes.started(child.pid) is None and processes.parent(child.pid) is None


def test_what_is_newer_than_the_youngest_worker_is_unread(look, master, tmp_path):
    old, new = written(tmp_path / "etc/old", -100), written(tmp_path / "etc/deep/new", 1)
    assert look([old, tmp_path / "gone"])["files"] == []
    found = look([tmp_path / "etc"])
    assert found["changed"] and found["files"] == [str(new)]
    # The master had it read by a new worker.
    os.utime(new, (processes.started(master.process.pid) + 0.2,) * 2)
    until = time.monotonic() + 5
    while look([tmp_path / "etc"])["changed"]:
        assert time.monotonic() < until
        master.reload()
    assert look([tmp_path / "etc"])["files"] == []


def test_a_program_that_was_replaced_is_unread(look, tmp_path):
    program = tmp_path / "engine"
    shutil.copy(shutil.which("cat"), program)
    with subprocess.Popen([program], stdin=subprocess.PIPE) as running:
        found = look([], pid=running.pid)
        assert not found["changed"] and found["files"] == [] and not found["replaced"]
        # As dpkg does it: a new file takes the name.
        shutil.copy(program, tmp_path / "new")
        (tmp_path / "new").rename(program)
        found = look([], pid=running.pid)
        assert found["changed"] and found["files"] == [str(program)] and found["replaced"]
        running.stdin.close()


def test_a_link_is_as_new_as_what_it_leads_to(look, tmp_path):
    target = written(tmp_path / "elsewhere/cert.pem", -100)
    (tmp_path / "etc").mkdir()
    link = tmp_path / "etc/own.crt"
    link.symlink_to(target)
    os.utime(link, (1, 1), follow_symlinks=False)
    assert look([tmp_path / "etc"])["files"] == []
    written(target, 5)
    assert look([tmp_path / "etc"])["files"] == [str(link)]


def test_a_unit_that_does_not_run_reads_everything_when_it_starts(look, tmp_path):
    result = look([written(tmp_path / "new", 100)], pid=0)
    assert not result["failed"] and not result["changed"] and result["files"] == []


@pytest.mark.parametrize(("moment", "unread"), [("Fri 2026-11-20 20:13:12.123456 UTC", True), ("Fri 2126-11-20 20:13:12.123456 UTC", False)])
def test_where_no_process_is_started_the_last_reload_counts(look, tmp_path, moment, unread):
    assert look([written(tmp_path / "new", 0)], since="reload", changed=moment)["changed"] is unread


def test_a_systemd_that_does_not_answer_is_named(run_module, program, monkeypatch):
    path = program("systemctl", "import sys; sys.exit('no bus')")
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")
    result = run_module(unread_files, unit="engine.service", paths=[])
    assert result["failed"] and "engine.service" in result["msg"] and "no bus" in result["msg"]
