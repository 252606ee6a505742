"""What status.yml and backup.yml say of backups, and where a restore puts the data."""

import json

import pytest

from ansible_collections.openclaw.ha.plugins.module_utils import backup
from ansible_collections.openclaw.ha.plugins.module_utils.topology import build

NOW = 1_000_000
NAMES = ("node1", "node2")
TOPOLOGY = build(
    {"openclaw_gateways": list(NAMES), "openclaw_redis": list(NAMES)},
    {name: {"ansible_host": f"192.0.2.1{number}"} for number, name in enumerate(NAMES, 1)},
)


def record(hours, *what, problems=(), failures=0, skipped=None):
    """The record of a run that went well last so many hours ago."""
    good = [{"what": one, "snapshot": "0123abcd", "bytes": 2_500_000, "seconds": 3.2, "conversations": 7} for one in what]
    return {
        "ok": not problems,
        "problems": list(problems),
        "failures": failures,
        "good": good,
        "good_at": None if hours is None else NOW - hours * 3600,
        "skipped": skipped,
    }


@pytest.fixture
def answers():
    """node2 saves Redis and proves it, both save their gateways."""
    return {
        "node1": {"backup": said(make=record(1, "gateway"))},
        "node2": {"backup": said(make=record(2, "redis", "gateway"), prove=record(30, "restore test"), check=record(100, "backup_repository, part 1 of 8"))},
    }


def said(**records):
    timers = {f"openclaw-backup-{action}.timer": "active" for action in ("make", "check", "prove")}
    return {"records": records, "timers": timers, "max_age": 14, "restore_max_age": 50, "kinds": ["redis", "gateway"]}


def test_all_is_well(answers):
    rows, problems = backup.backups(TOPOLOGY, answers, NOW)
    assert problems == []
    assert [(row["host"], row["what"], row["age"]) for row in rows] == [
        ("node1", "gateway", 3600),
        ("node2", "redis", 7200),
        ("node2", "gateway", 7200),
        ("node2", "restore test", 108000),
    ]


def test_no_backups_at_all_are_no_rows():
    assert backup.backups(TOPOLOGY, {"node1": {"backup": {}}, "node2": None}, NOW) == ([], [])


PROBLEMS = {
    "redis too old": (
        lambda all_of: all_of["node2"].update(kinds=["redis"], records={**all_of["node2"]["records"], "make": record(15, "redis")}),
        "Redis of main: the last good backup is 15 h old, and 14 h are allowed.",
    ),
    "gateway too old": (lambda all_of: all_of["node1"]["records"].update(make=record(20, "gateway")), "Gateways of node1: the last good backup is 20 h old"),
    "proof too old": (lambda all_of: all_of["node2"]["records"].update(prove=record(51, "restore test")), "the last good restore test is 2 d old, and 50 h"),
    "never proven": (lambda all_of: all_of["node2"]["records"].pop("prove"), "no good restore test yet; run backup.yml with -e backup_prove=true"),
    "never saved": (lambda all_of: all_of["node1"]["records"].clear(), "Gateways of node1: there is no good backup yet; run backup.yml."),
    "timer": (lambda all_of: all_of["node1"]["timers"].update({"openclaw-backup-make.timer": "inactive"}), "openclaw-backup-make.timer is inactive"),
    "failed": (
        lambda all_of: all_of["node1"]["records"].update(make=record(1, "gateway", problems=["It is damaged."], failures=3)),
        "node1: backup failed 3 times in a row: It is damaged. See journalctl -u openclaw-backup-make there.",
    ),
    "check": (
        lambda all_of: all_of["node2"]["records"].update(check=record(None, problems=["It is damaged."], failures=1)),
        "node2: check of the backup repository failed the last time: It is damaged.",
    ),
}


@pytest.mark.parametrize("case", PROBLEMS)
def test_what_is_a_problem(case, answers):
    change, words = PROBLEMS[case]
    change({host: one["backup"] for host, one in answers.items()})
    _rows, problems = backup.backups(TOPOLOGY, answers, NOW)
    assert len(problems) == 1 and words in problems[0]


def test_a_host_without_the_program_is_a_problem(answers):
    answers["node1"]["backup"] = backup.said({"rc": 2, "stdout": "", "stderr": "", "msg": "no such file"})
    assert "node1: openclaw-backup status: no such file; run site.yml." in backup.backups(TOPOLOGY, answers, NOW)[1]


def test_what_a_task_said():
    assert backup.said({}) == backup.said({"skipped": True}) == backup.said({"unreachable": True}) == {}
    assert backup.said({"stdout": json.dumps({"records": {}})}) == {"records": {}}
    assert backup.said({"stdout": "", "stderr": "wrong"}) == {"error": "wrong"}


def test_another_host_has_taken_over(answers):
    answers["node1"]["backup"]["records"]["make"] = record(1, "redis", "gateway")
    answers["node2"]["backup"]["records"]["make"] = record(13, "redis", "gateway")
    assert backup.backups(TOPOLOGY, answers, NOW)[1] == []


def test_what_backup_yml_shows():
    rows, notes = backup.told({"node1": {"status": said(make=record(None, problems=["No room."], failures=1)), "would": ["gateway: /etc"]}}, NOW)
    assert rows == [] and notes == ["node1: gateway: /etc", "node1: backup failed: No room."]
    skipped = {"status": said(make=record(None, skipped="node2 saves Redis"))}
    rows, notes = backup.told({"node1": skipped, "node2": {"status": said(make=record(1, "redis"))}}, NOW)
    assert notes == ["node1: node2 saves Redis."]
    assert backup.lines(rows)[1] == ("node2", "redis", "0123abcd", "2.5 MB", "3.2", "60 min", "7")


@pytest.mark.parametrize(("seconds", "words"), [(0, "0 s"), (-5, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "120 min"), (7200, "2 h"), (172800, "2 d")])
def test_age(seconds, words):
    assert backup.age(seconds) == words


NODES = TOPOLOGY["redis"]
FIRST, SECOND = "192.0.2.11:6379", "192.0.2.12:6379"


@pytest.mark.parametrize(
    ("view", "host"),
    [
        ({"state": "agreed", "primary": SECOND}, "node2"),
        ({"state": "disagreed", "sentinels": [{"primary": SECOND}, {"primary": SECOND}, {"primary": FIRST}]}, "node2"),
        ({"state": "disagreed", "sentinels": [{"primary": SECOND}, {"primary": FIRST}]}, "node1"),
        ({"state": "absent", "sentinels": [{"error": "no"}]}, "node1"),
        ({"state": "disagreed", "sentinels": [{"primary": "192.0.2.99:6379"}]}, "node1"),
        ({}, "node1"),
    ],
)
def test_where_the_data_are_put(view, host):
    assert backup.restore_target(NODES, view)["host"] == host


def test_what_stands_against_a_restore():
    empty = {"set_up": True, "data": False, "keys": 0, "bytes": 176}
    target = backup.restore_target(NODES, {})
    assert backup.restore_problems({"node1": empty, "node2": empty}, target, False) == []
    full = {**empty, "data": True, "keys": 3}
    (problem,) = backup.restore_problems({"node1": empty, "node2": full}, target, False)
    assert "node2 has 3 keys" in problem and "restore_over=true" in problem and "node1" in problem
    assert backup.restore_problems({"node1": empty, "node2": full}, target, True) == []
    assert "files of 176 bytes" in backup.restore_problems({"node1": {**full, "keys": None}}, target, False)[0]
    assert "never set up" in backup.restore_problems({"node1": {**empty, "set_up": False}}, target, True)[0]
