from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.openclaw.ha.plugins.module_utils import replica, systemd

RUNNING = {
    "LoadState": "loaded",
    "ActiveState": "active",
    "UnitFileState": "enabled",
    "NeedDaemonReload": "no",
}


@pytest.mark.parametrize(
    ("change", "running", "verbs"),
    [
        ({}, "new", []),
        ({}, "old", ["restart"]),
        ({}, "", ["restart"]),
        ({"NeedDaemonReload": "yes"}, "new", ["daemon-reload"]),
        ({"NeedDaemonReload": "yes"}, "old", ["daemon-reload", "restart"]),
        ({"UnitFileState": "disabled"}, "new", ["enable"]),
        ({"ActiveState": "inactive"}, "", ["start"]),
        ({"ActiveState": "activating"}, "", ["restart"]),
        ({"ActiveState": "activating"}, "new", ["restart"]),
        ({"ActiveState": "failed"}, "", ["reset-failed", "start"]),
        (
            {"LoadState": "not-found", "ActiveState": "inactive", "UnitFileState": ""},
            "",
            ["daemon-reload", "enable", "start"],
        ),
    ],
)
def test_plan(change, running, verbs):
    assert replica.plan({**RUNNING, **change}, running, "new") == verbs


def test_plan_where_systemd_knows_nothing():
    assert replica.plan({}, "", "new") == ["daemon-reload", "enable", "start"]


PARTS = st.lists(st.tuples(st.text(max_size=5), st.binary(max_size=5)), max_size=4)


@given(PARTS, PARTS, st.binary(max_size=4))
def test_a_generation_tells_contents_apart(one, other, key):
    assert (replica.generation(key, one) == replica.generation(key, other)) == (sorted(one) == sorted(other))


def test_a_generation_depends_on_the_key():
    assert replica.generation(b"a", []) != replica.generation(b"b", [])


def test_what_is_taken_over_live_does_not_count_at_the_start():
    config = {"gateway": {"port": 1}, "plugins": {}, "channels": {}, **{name: {"x": 1} for name in replica.LIVE}}
    assert replica.of_the_start(config) == {"gateway": {"port": 1}, "plugins": {}, "channels": {}}
    # A decision model has the plugins reloaded.
    agents = {"defaults": {"model": "a", "decisionModel": "b"}, "entries": {"main": {"decisionModel": "c"}, "other": {"model": "d"}}}
    assert replica.of_the_start({"agents": agents}) == {"agents": {"defaults": "b", "main": "c"}}


@pytest.mark.parametrize(
    ("journal", "taken"),
    [
        ("", None),
        ("[reload] config change detected; evaluating reload (tools.deny)\n", None),
        ("[reload] config change detected; evaluating reload (tools.deny)\n[reload] config hot reload applied (tools.deny)\n", True),
        ("[reload] config change applied (dynamic reads: messages.x)\n", True),
        ("[reload] config reload skipped (invalid config): x\n", False),
        ("[reload] config change requires gateway restart (gateway.port)\n", False),
    ],
)
def test_what_openclaw_says_of_a_change(journal, taken):
    assert replica.taken_over(journal) == (taken, journal.splitlines()[-1] if taken is not None else "")


def test_running_generation():
    environ = b"PATH=/bin\0OPENCLAW_HA_GENERATION=abc\0X=OPENCLAW_HA_GENERATION=no\0"
    assert replica.running_generation(environ) == "abc"
    assert replica.running_generation(b"") == replica.running_generation(b"PATH=/bin\0") == ""


def test_complaints():
    assert replica.complaints(0, '{"valid": true, "warnings": [{"path": "a", "message": "b"}]}', "") == []
    invalid = json.dumps(
        {"valid": False, "issues": [{"path": "a.b", "message": "expected number"}, {"path": "c", "message": "d"}]}
    )
    assert replica.complaints(1, invalid, "") == ["a.b: expected number", "c: d"]


@pytest.mark.parametrize(
    ("rc", "out", "err"), [(1, "", ""), (0, "", ""), (0, "{}", ""), (1, '{"valid": true}', ""), (134, "", "Aborted")]
)
def test_a_check_that_does_not_say_valid_is_a_complaint(rc, out, err):
    found = replica.complaints(rc, out, err)
    assert len(found) == 1 and found[0]


class Commands:
    """Stands for run_command: answers by the first words, remembers what was asked."""

    def __init__(self, **answers):
        self.answers, self.asked = answers, []

    def __call__(self, words):
        self.asked.append(words)
        return self.answers.get(words[1] if words[0] == "systemctl" else words[0], (0, "", ""))


def test_journal_shows_the_latest_start_only():
    commands = Commands(show=(0, "InvocationID=abc\nMainPID=0\n", ""), journalctl=(0, "one\ntwo\n", ""))
    assert systemd.Units(commands).journal("x@1.service", 30) == "one\ntwo"
    words = [
        "journalctl",
        "_SYSTEMD_INVOCATION_ID=abc",
        "+",
        "INVOCATION_ID=abc",
        "-n",
        "30",
        "--no-pager",
        "-o",
        "cat",
    ]
    assert commands.asked[-1] == words


def test_journal_of_a_unit_that_never_started():
    commands = Commands(show=(0, "InvocationID=\n", ""), journalctl=(1, "", "No journal files were found."))
    assert systemd.Units(commands).journal("x@1.service", 5) == "No journal files were found."
    assert commands.asked[-1][1:3] == ["-u", "x@1.service"]


def test_show_without_systemd():
    assert systemd.Units(Commands(show=(1, "", "Failed to connect to bus"))).show("x.service") == {}


def test_a_failed_verb_keeps_systemds_words():
    units = systemd.Units(Commands(restart=(1, "", "Job for x.service failed.\n")))
    with pytest.raises(systemd.SystemdError, match="^systemctl restart -- x.service: Job for x.service failed.$"):
        units.do("restart", "--", "x.service")


@pytest.mark.parametrize(
    "old, new, inherits",
    [
        ("/var/1/2026.9.5", "/var/1/2026.9.6", True),
        ("/var/1/2026.9.9", "/var/1/2026.10.0", True),
        ("/var/1/2026.9.6", "/var/1/2026.9.5", False),
        ("/var/1/2026.9.6", "/var/1/2026.9.6", False),
        ("/var/1/2026.9.6-beta.1", "/var/1/2026.9.6", True),
        ("/var/1/2026.9.6", "/var/1/2026.9.6-beta.1", False),
        ("", "/var/1/2026.9.6", False),
        ("/var/1/current", "/var/1/2026.9.6", False),
    ],
)
def test_a_newer_release_inherits(old, new, inherits):
    assert replica.inherits(old, new) is inherits
