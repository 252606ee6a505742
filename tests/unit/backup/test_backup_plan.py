"""The decisions of the backup."""

from __future__ import annotations

import json
import pathlib

import pytest
from backup_rig import PASSWORD
from openclaw_backup import config, plan

NODES = [{"host": f"node{number}", "address": f"192.0.2.{number}", "port": 6379} for number in (1, 2, 3)]


def at(number):
    return f"192.0.2.{number}:6379"


@pytest.mark.parametrize(
    ("primary", "online", "who", "why"),
    [
        (1, {2, 3}, "node2", "first of the inventory's replicas"),
        (2, {1, 3}, "node1", "first of the inventory's replicas"),
        (1, {3}, "node3", "first of the inventory's replicas"),
        (1, set(), "node1", "it is the primary, and no replica is online"),
        (9, {2}, "node2", "first of the inventory's replicas"),
        (9, set(), "node3", "calls no server of this one online"),
        (1, {9}, "node1", "it is the primary, and no replica is online"),
        (1, None, "node3", "does not answer, so every replica saves"),
    ],
)
def test_who_saves(primary, online, who, why):
    found = plan.elect(NODES, "node3", at(primary), online if online is None else {at(number) for number in online})
    assert found[0] == who and why in found[1]


@pytest.mark.parametrize("online", [{1}, {1, 2}, {2}, {3}, {1, 2, 3}, set()])
def test_all_hosts_come_to_the_same_answer(online):
    assert len({plan.elect(NODES, node["host"], at(1), {at(number) for number in online})[0] for node in NODES}) == 1


def test_what_info_tells():
    row = {"ip": "192.0.2.2", "port": 6379, "state": "online", "offset": 1, "lag": 0}
    waiting = {**row, "ip": "192.0.2.3", "state": "wait_bgsave"}
    info = {"role": "master", "connected_slaves": 2, "slave0": row, "slave1": waiting, "slave_expires_tracked_keys": 0}
    assert plan.online_replicas(info) == {at(2)}
    assert plan.keys_of({"db0": {"keys": 3, "expires": 1}, "db11": {"keys": 4}, "dbx": {"keys": 9}}) == 7


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Fatal: wrong password or no key found", "wrong_password"),
        ("unable to create lock in backend: repository is already locked by PID 7 on node1 by root (UID 0, GID 0)", "locked"),
        ("Fatal: unable to save snapshot: write /r/tmp/x: no space left on device", "disk_full"),
        ("Save(<data/1>) returned error: disk quota exceeded", "disk_full"),
        ("Fatal: repository contains errors", "damaged"),
        ("pack 12: ciphertext verification failed", "damaged"),
        ("Fatal: unable to open config file: Lstat: stat /r/config: no such file or directory\nIs there a repository at", "missing_repository"),
        ("Fatal: unable to open config file: Stat: The specified key does not exist.", "missing_repository"),
        ("Fatal: unable to open config file: <config/> does not exist", "missing_repository"),
        ("Fatal: unable to open config file: Stat: Head http://192.0.2.1/config: dial tcp: connect: connection refused", "unreachable"),
        ("dial tcp: lookup backup.example.com: no such host", "unreachable"),
        ("Fatal: no snapshot found", "missing_snapshot"),
        ("Fatal: something else", "failed"),
    ],
)
def test_what_restic_failed_with(text, kind):
    assert plan.kind_of(1, text) == kind and plan.kind_of(0, text) == ""
    sentence = plan.sentence(kind, "backup_offsite_repository", "/r", text)
    assert sentence.startswith("backup_offsite_repository /r: ") and sentence.endswith(".") and "\n" not in sentence


def test_secrets_leave_no_trace_in_what_is_shown():
    shown = plan.redact("rest:https://me:pass@backup.example.com/x: key abcdef and pass", ["abcdef", "", "pass"])
    assert shown == "rest:https://backup.example.com/x: key (secret) and (secret)"


SNAPSHOTS = [{"id": f"{number}{number}abcdef0000", "time": f"2026-01-0{number}T00:00:00Z"} for number in (2, 1, 3)]


def test_the_snapshot_that_is_meant():
    assert plan.choose(SNAPSHOTS, "latest")["id"].startswith("33")
    assert plan.choose(SNAPSHOTS, "11ab")["id"].startswith("11")


@pytest.mark.parametrize("wanted", ["", "11", "44ab", "newest", "--help", "11ab; rm"])
def test_a_snapshot_that_is_not_there(wanted):
    with pytest.raises(plan.Problem, match="allowed are latest or the first 8 digits of one"):
        plan.choose(SNAPSHOTS, wanted)


def test_of_two_with_the_same_beginning_none_is_guessed():
    with pytest.raises(plan.Problem, match="found 2 snapshots"):
        plan.choose([*SNAPSHOTS, {**SNAPSHOTS[0], "id": "22abffff"}], "22ab")
    with pytest.raises(plan.Problem, match="no snapshot of that kind"):
        plan.choose([], "latest")


@pytest.mark.parametrize(("last", "found"), [(None, 1), (1, 2), (2, 3), (3, 1), (9, 1), ("x", 1)])
def test_parts_of_a_check(last, found):
    assert plan.next_part(last, 3) == found


def test_retention_that_keeps_nothing_is_refused():
    assert plan.keep_options({"last": 2, "daily": 0, "weekly": 1, "monthly": 0}) == ["--keep-last=2", "--keep-weekly=1"]
    with pytest.raises(plan.Problem, match="nothing would be kept"):
        plan.keep_options({"last": 0, "daily": 0, "weekly": 0, "monthly": 0})


def one(**more):
    return {"type": "list", "length": 2, "digest": "a", "expires_at": None, **more}


@pytest.mark.parametrize(
    ("before", "after", "differs"),
    [
        ({"k": one()}, {"k": one()}, []),
        ({"k": one()}, {}, ["k: is missing"]),
        ({}, {"k": one()}, ["k: is not in the manifest"]),
        ({"k": one()}, {"k": one(length=3)}, ["k: length differs (3 instead of 2)"]),
        ({"k": one()}, {"k": one(digest="b")}, ["k: content differs"]),
        ({"k": one()}, {"k": one(type="set")}, ["k: type differs (set instead of list)"]),
        ({"k": one(expires_at=5)}, {}, []),
        ({"k": one(expires_at=15)}, {}, ["k: is missing"]),
    ],
)
def test_what_differs(before, after, differs):
    report = plan.compare({"keys": 1, "conversations": before}, {"keys": 1, "conversations": after}, now=10)
    assert report["differs"] == differs and report["equal"] is not bool(differs)


def test_the_number_of_keys_counts_only_where_nothing_expires():
    sides = ({"keys": 1, "conversations": {}}, {"keys": 2, "conversations": {}})
    assert plan.compare(*sides, now=0)["differs"] == ["2 keys instead of 1"]
    assert plan.compare(*sides, now=0, exact=False)["equal"]


def test_many_differences_are_counted():
    report = plan.compare({"keys": 0, "conversations": {f"k{number}": one() for number in range(20)}}, {"keys": 0, "conversations": {}}, now=0)
    assert len(report["differs"]) == plan.MOST_NAMED + 1 and report["differs"][-1] == "and 15 further conversations"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 2}, "has format 2"),
        ({"keys": "x"}, "no sound keys"),
        ({"conversations": []}, "no sound conversations"),
        ({"sha256": None}, "no sound sha256"),
    ],
)
def test_what_is_no_manifest(change, words):
    with pytest.raises(plan.Problem, match=words):
        plan.check_manifest({"format": 1, "keys": 1, "sha256": "", "bytes": 1, "databases": 16, "conversations": {}, **change})
    with pytest.raises(plan.Problem):
        plan.check_manifest([])


def test_the_file_that_redis_owns():
    text = "maxmemory 1gb\nreplicaof 192.0.2.1 6379\nslaveof 192.0.2.1 6379\nmasterauth replicaof\n"
    assert plan.redis_conf(text, None) == "maxmemory 1gb\nmasterauth replicaof\n"
    assert plan.redis_conf(text, ("192.0.2.2", 6379)) == "maxmemory 1gb\nmasterauth replicaof\nreplicaof 192.0.2.2 6379\n"


@pytest.mark.parametrize(
    ("files", "holds"),
    [
        ({}, False),
        ({"appendonly.aof.1.base.rdb": 0, "appendonly.aof.1.incr.aof": 0, "appendonly.aof.manifest": 88}, False),
        ({"appendonly.aof.1.base.rdb": 0, "appendonly.aof.1.incr.aof": 1}, True),
        ({"appendonly.aof.1.base.rdb": 1}, True),
        ({"appendonly.aof.1.base.aof": 30}, True),
        ({"dump.rdb": None}, True),
        ({"appendonly.aof.manifest": 5000}, False),
    ],
)
def test_whether_files_may_hold_keys(files, holds):
    assert plan.holds_data(files) is holds


def test_what_redis_check_rdb_counts():
    assert plan.keys_read("[offset 121] \\o/ RDB looks OK! \\o/\n[info] 1 keys read\n[info] 0 expires") == 1
    assert plan.keys_read("--- RDB ERROR DETECTED ---") is None


def test_room():
    plan.room(10, 10, "/x")
    with pytest.raises(plan.Problem, match="/x: 2.0 MB are needed and 1.0 MB are free"):
        plan.room(2_000_000, 1_000_000, "/x")


def test_a_record_remembers_what_went_well_last():
    good = plan.record({}, "make", {"parts": [{"bytes": 5}], "problems": []}, 10, 20)
    assert good["ok"] and good["good_at"] == 20 and good["failures"] == 0 and good["seconds"] == 10
    bad = plan.record(good, "make", {"parts": [], "problems": ["x"]}, 30, 31)
    assert not bad["ok"] and bad["good_at"] == 20 and bad["good"] == [{"bytes": 5}] and bad["failures"] == 1
    skipped = plan.record(bad, "make", {"parts": [], "problems": [], "skipped": "another one"}, 40, 41)
    assert skipped["ok"] and skipped["good_at"] == 20 and skipped["failures"] == 0
    assert plan.metrics({"make": bad}, 50)["make"] == {"ok": 0, "skipped": 0, "ended": 31, "good_at": 20, "seconds": 1, "failures": 1, "bytes": 5}


WRONG = {
    "missing": (lambda one: one.pop("keep"), "missing or unknown: keep"),
    "unknown": (lambda one: one.update(more=1), "missing or unknown: more"),
    "type": (lambda one: one.update(lock_wait="x"), "lock_wait is of the wrong type"),
    "truth": (lambda one: one.update(check_parts=True), "check_parts is of the wrong type"),
    "empty": (lambda one: one["repository"].update(location=""), "backup_repository is empty"),
    "offsite": (lambda one: one.update(offsite={"location": "x"}), "offsite must have"),
    "parts": (lambda one: one.update(check_parts=0), "backup_check_parts is 0; it must be 1 or more"),
    "keep": (lambda one: one.update(keep=dict.fromkeys(("last", "daily", "weekly", "monthly"), 0)), "nothing would be kept"),
    "kept": (lambda one: one.update(keep={"last": 1}), "keep must have"),
    "redis": (lambda one: one["redis"].pop("unit"), "redis: missing or unknown: unit"),
    "gateway": (lambda one: one.update(gateway={}), "gateway must have"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_configuration_that_cannot_be_worked_with(case, bare):
    change, words = WRONG[case]
    config.check(bare.config)
    change(bare.config)
    with pytest.raises(plan.Problem, match=words):
        config.check(bare.config)


def test_the_command_says_what_is_wrong_with_its_file(bare):
    path = pathlib.Path(bare.write_config())
    code, _out, err = bare.command("check-config")
    assert code == 0 and err == ""
    for text, words in ((None, "cannot be read"), ("{", "is no JSON"), (json.dumps({"password": PASSWORD}), "missing or unknown")):
        path.unlink(missing_ok=True)
        if text:
            path.write_text(text)
        with pytest.raises(plan.Problem, match=words) as raised:
            config.load(str(path))
        assert PASSWORD not in str(raised.value)
