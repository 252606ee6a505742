"""redis_aof_check on files that a real redis-server has written, each broken in one way, and what the server makes of
them."""

import json
import os
import shutil
import subprocess

import pytest

from ansible_collections.openclaw.ha.plugins.module_utils import aof
from ansible_collections.openclaw.ha.plugins.modules import redis_aof_check

BASE = "appendonly.aof.2.base.rdb"
INCR = "appendonly.aof.2.incr.aof"
MANIFEST = "appendonly.aof.manifest"
LOST = "appendonly.aof.1.incr.aof"
REFUSES = None


def edit(path, change):
    """Rewrite a file through a function of its bytes."""
    path.write_bytes(change(path.read_bytes()))


def middle_of(path, old, new):
    """Replace the occurrence nearest to the middle, of equal length or not."""
    edit(path, lambda data: data[: len(data) // 2] + data[len(data) // 2 :].replace(old, new, 1))


# name: what is done to the folder; verdict; file; whether redis-check-aof is content; keys that the server has after
# its start (None: it refuses)
CASES = {
    "good": (lambda folder: None, "ok", None, True, 200),
    "tail cut": (lambda folder: edit(folder / INCR, lambda data: data[:-5]), "truncated_tail", INCR, False, 199),
    "unfinished MULTI": (
        lambda folder: edit(
            folder / INCR, lambda data: data + b"*1\r\n$5\r\nMULTI\r\n*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1\r\nb\r\n"
        ),
        "truncated_tail",
        INCR,
        False,
        200,
    ),
    "framing broken in the middle": (
        lambda folder: middle_of(folder / INCR, b"\r\n*3\r\n", b"\r\n?3\r\n"),
        "corrupt",
        INCR,
        False,
        REFUSES,
    ),
    # The server takes the rest of the file for one unfinished value and drops it: silent loss, so this must not pass
    # for a cut tail.
    "length broken in the middle": (
        lambda folder: middle_of(folder / INCR, b"\r\n$9\r\nvalue", b"\r\n$99999\r\nvalue"),
        "corrupt",
        INCR,
        False,
        150,
    ),
    "value byte changed": (lambda folder: middle_of(folder / INCR, b"\r\nvalue", b"\r\nvague"), "ok", None, True, 200),
    "base cut": (lambda folder: edit(folder / BASE, lambda data: data[:-20]), "corrupt", BASE, False, REFUSES),
    "base value byte flipped": (
        lambda folder: middle_of(folder / BASE, b"value", b"vague"),
        "corrupt",
        BASE,
        False,
        REFUSES,
    ),
    "incr missing": (lambda folder: (folder / INCR).unlink(), "missing_file", INCR, False, REFUSES),
    "base missing": (lambda folder: (folder / BASE).unlink(), "missing_file", BASE, False, REFUSES),
    "manifest missing": (lambda folder: (folder / MANIFEST).unlink(), "orphan_files", MANIFEST, False, 0),
    "manifest empty": (lambda folder: (folder / MANIFEST).write_bytes(b""), "bad_manifest", None, True, REFUSES),
    "manifest garbage": (
        lambda folder: (folder / MANIFEST).write_bytes(b"\x00\x17garbage\n"),
        "bad_manifest",
        None,
        False,
        REFUSES,
    ),
    "manifest line cut": (
        lambda folder: edit(folder / MANIFEST, lambda data: data[:-4]),
        "bad_manifest",
        None,
        False,
        REFUSES,
    ),
    "manifest without its incr": (
        lambda folder: edit(folder / MANIFEST, lambda data: data.splitlines(True)[0]),
        "bad_manifest",
        None,
        True,
        100,
    ),
    "manifest without its base": (
        lambda folder: edit(folder / MANIFEST, lambda data: data.splitlines(True)[1]),
        "bad_manifest",
        None,
        True,
        100,
    ),
    "folder gone": (shutil.rmtree, "missing_file", MANIFEST, False, 0),
}


@pytest.fixture
def data(tmp_path, aof_data):
    return shutil.copytree(aof_data, tmp_path / "data")


@pytest.fixture
def check(run_module, data):
    def ask(check=False, **arguments):
        return run_module(
            redis_aof_check, check=check, **{"directory": str(data), "record": str(data / "none"), **arguments}
        )

    return ask


@pytest.mark.parametrize("case", CASES)
def test_each_case_of_the_table(case, check, data, redis_server):
    damage, verdict, file, content, keys = CASES[case]
    folder = data / "appendonlydir"
    damage(folder)
    before = sorted((path.name, path.read_bytes()) for path in folder.rglob("*"))

    found = check()
    assert (found["verdict"], found["file"], found["changed"], found["failed"]) == (verdict, file, False, False), found
    assert found["advice"] if verdict != "ok" else found["findings"] == []
    assert sorted((path.name, path.read_bytes()) for path in folder.rglob("*")) == before

    # The table itself: what the tool and the server make of it.
    tool = subprocess.run(["redis-check-aof", str(folder / MANIFEST)], capture_output=True, check=False)
    assert (tool.returncode == 0) is content, tool.stdout
    server = redis_server(data)
    started = server.start()
    assert (server.client().dbsize() if started else None) == keys, server.log.read_text()
    server.stop()


def test_where_and_how_much(check, data):
    whole = (data / "appendonlydir" / INCR).stat().st_size
    edit(data / "appendonlydir" / INCR, lambda content: content[:-5])
    found = check()
    assert found["offset"] + found["bytes"] == whole - 5 and 0 < found["bytes"] < 60
    assert "(SET)" in found["sentence"] and found["summary"] == f"truncated_tail {INCR} ({found['bytes']} bytes)"


def test_a_cut_that_is_not_at_the_end_heals_only_in_appearance(
    run_module, tmp_path, aof_data_two_increments, redis_server
):
    data = shutil.copytree(aof_data_two_increments, tmp_path / "data")
    edit(data / "appendonlydir" / LOST, lambda content: content[:-5])

    def verdict():
        return run_module(redis_aof_check, directory=str(data), record=str(data / "none"))

    found = verdict()
    assert (found["verdict"], found["file"]) == ("corrupt", LOST) and "next" in found["sentence"]
    server = redis_server(data)
    assert not server.start()
    assert server.start() and server.client().dbsize() == 199  # the hole
    server.stop()
    assert verdict()["verdict"] == "ok"  # nothing tells any more: so it has to be looked at before each start


def test_the_two_increments_are_whole(run_module, aof_data_two_increments):
    assert run_module(redis_aof_check, directory=str(aof_data_two_increments), record="/nonexistent")["verdict"] == "ok"


def test_files_of_a_crashed_rewrite_are_no_orphans_but_newer_data_is(check, data):
    folder = data / "appendonlydir"
    (folder / "appendonly.aof.3.incr.aof").write_bytes(b"")
    shutil.copy(folder / BASE, folder / "appendonly.aof.3.base.rdb")
    assert check()["verdict"] == "ok"
    shutil.copy(folder / INCR, folder / "appendonly.aof.3.incr.aof")
    found = check()
    assert (found["verdict"], found["file"]) == ("orphan_files", "appendonly.aof.3.incr.aof")


def test_started_empty_is_seen_by_the_record(check, data, redis_server):
    record = data / "record.json"
    record.write_text(json.dumps(aof.record_of(aof.look(data, run=None))))
    assert check(record=str(record))["verdict"] == "ok"
    shutil.rmtree(data / "appendonlydir")
    assert check(record=str(record))["verdict"] == "missing_file"
    server = redis_server(data)
    assert server.start() and server.client().dbsize() == 0
    server.stop()
    assert check()["verdict"] == "ok"
    assert check(record=str(record))["verdict"] == "started_empty"
    # Under the same number as well: another base is another content.
    record.write_text(json.dumps({"base": "appendonly.aof.1.base.rdb", "seq": 1, "digest": "0" * 64}))
    assert check(record=str(record))["verdict"] == "started_empty"
    record.write_text("{}")
    assert check(record=str(record))["failed"]


def test_rewrites_and_restarts_agree_with_the_record(check, data, redis_server):
    record = data / "record.json"
    server = redis_server(data)
    for _round in range(2):
        assert server.start()
        record.write_text(json.dumps(aof.record_of(aof.look(data, run=None))))
        client = server.client()
        client.bgrewriteaof()
        server.until(lambda: not client.info("persistence")["aof_rewrite_in_progress"])
        server.stop()
        assert check(record=str(record))["verdict"] == "ok"


def test_unreadable_is_not_corrupt(data):
    # Root reads everything, so another user looks.
    path = data
    while path != path.parent:
        os.chmod(path, 0o755) if path.stat().st_mode & 0o005 != 0o005 else None
        path = path.parent
    (data / "appendonlydir" / INCR).chmod(0)
    pid = os.fork()
    if not pid:
        os.setuid(65534)
        seen = aof.look(data, run=None)
        os._exit(0 if aof.worst(aof.judge_files(seen))["verdict"] == "unreadable" and INCR in seen["error"] else 1)
    assert os.waitpid(pid, 0)[1] == 0


def test_a_directory_that_is_not_there_is_unreadable(check, tmp_path):
    assert check(directory=str(tmp_path / "gone"))["verdict"] == "unreadable"


def test_repair_works_on_a_copy_and_keeps_the_original(check, data, redis_server):
    folder = data / "appendonlydir"
    edit(folder / INCR, lambda content: content[:-5])
    damaged = (folder / INCR).read_bytes()

    tried = check(check=True, repair=True)
    assert tried["changed"] and "dropped" in tried["diff"]["after"] and (folder / INCR).read_bytes() == damaged

    fixed = check(repair=True)
    assert (fixed["changed"], fixed["verdict"]) == (True, "ok")
    assert (folder / INCR).read_bytes() == damaged[: tried["offset"]]
    with open(fixed["kept"], "rb") as kept:
        assert kept.read() == damaged
    assert sorted(os.listdir(data)) == ["appendonlydir"]

    assert check(repair=True)["changed"] is False
    server = redis_server(data, "aof-load-truncated no")
    assert server.start() and server.client().dbsize() == 199
    server.stop()


@pytest.mark.parametrize(
    "case", ["framing broken in the middle", "length broken in the middle", "base cut", "manifest missing"]
)
def test_repair_leaves_other_damage_alone(case, check, data):
    CASES[case][0](data / "appendonlydir")
    before = sorted((path.name, path.read_bytes()) for path in (data / "appendonlydir").iterdir())
    refused = check(repair=True)
    assert refused["failed"] and "Only an unfinished end" in refused["msg"]
    assert sorted((path.name, path.read_bytes()) for path in (data / "appendonlydir").iterdir()) == before


def test_repair_refuses_while_a_server_uses_the_directory(check, data, redis_server):
    server = redis_server(data)
    assert server.start()
    edit_without_truncating = os.open(data / "appendonlydir" / INCR, os.O_WRONLY | os.O_APPEND)
    os.write(edit_without_truncating, b"*3\r\n$3\r\nSET\r\n$1\r\n")
    os.close(edit_without_truncating)
    refused = check(repair=True)
    assert refused["failed"] and f"in use by process {server.process.pid}" in refused["msg"]
    asked = check(repair=True, address="127.0.0.1", port=server.port)
    assert asked["failed"] and "in use" in asked["msg"]
    server.stop(kill=True)


def test_a_running_server_under_writes_and_rewrites_is_ok(check, redis_server, tmp_path):
    server = redis_server(tmp_path / "live")
    assert server.start()
    load = subprocess.Popen(
        [
            "redis-benchmark",
            "-p",
            str(server.port),
            "-t",
            "set,lpush",
            "-n",
            "100000000",
            "-d",
            "300",
            "-r",
            "2000",
            "-q",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        server.until(lambda: server.client().dbsize() > 100)
        for _round in range(5):
            server.client().bgrewriteaof()
            found = check(directory=None, address="127.0.0.1", port=server.port)
            assert (found["verdict"], found["online"]) == ("ok", True), found
            server.until(lambda: not server.client().info("persistence")["aof_rewrite_in_progress"])
    finally:
        load.kill()
        load.wait()
    assert found["server"]["keys"] > 0 and found["server"]["aof_enabled"] == 1
    server.stop()


def test_online_it_says_when_the_server_runs_elsewhere_or_writes_nothing(check, redis_server, tmp_path):
    server = redis_server(tmp_path / "live", "appendonly no")
    assert server.start()
    elsewhere = check(address="127.0.0.1", port=server.port)
    assert elsewhere["verdict"] in ("missing_file", "started_empty")
    assert {"started_empty", "write_failed"} <= {one["verdict"] for one in elsewhere["findings"]}
    assert "not in" in " ".join(one["sentence"] for one in elsewhere["findings"])
    server.stop()
    # No answer: the files alone, when it is known where they are.
    alone = check(address="127.0.0.1", port=server.port)
    assert (alone["verdict"], alone["online"]) == ("ok", False) and "refused" in alone["refusal"]
    assert check(directory=None, address="127.0.0.1", port=server.port)["failed"]


def test_a_wrong_password_is_said_and_the_files_are_judged(check, redis_server, tmp_path):
    server = redis_server(tmp_path / "live", "requirepass right")
    assert server.start()
    found = check(
        directory=str(tmp_path / "live"), address="127.0.0.1", port=server.port, redis_access={"password": "wrong"}
    )
    assert (found["verdict"], found["online"]) == ("ok", False) and "password pair" in found["refusal"]
    server.stop()
