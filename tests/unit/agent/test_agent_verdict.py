"""Every rule of the verdict, tripped; and what each check makes of what it sees."""

from __future__ import annotations

import json
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openclaw_agent import checks
from openclaw_agent.verdict import CHECKS, Finding, Gateway, Limits, Unit, document, gateway_state, judge

LIMITS = Limits(stalled=1.5, dead=6.0)
STARTED = Gateway(says="started", silent=0.3, version="2026.9.6", uptime=12)
ACTIVE = Unit(Finding(True))
WELL = {name: Finding(True) for name in CHECKS if name not in ("gateway", "unit")}
SWITCH = {"since": "2026-11-20T10:00:00+00:00", "by": "ada", "reason": "disk"}


def sick(name, problem="is sick"):
    return {**WELL, name: Finding(False, problem)}


def test_all_is_well():
    verdict = judge(STARTED, ACTIVE, WELL, None, LIMITS)
    assert (verdict.status, verdict.problems, verdict.line) == ("ok", [], "up 100%\n")
    assert list(verdict.checks) == list(CHECKS) and set(verdict.checks.values()) == {True}


def test_what_nobody_looks_at_is_null_and_no_problem():
    verdict = judge(STARTED, ACTIVE, {"partner": Finding()}, None, LIMITS)
    assert verdict.status == "ok"
    assert verdict.checks["partner"] is None and verdict.checks["redis"] is None and verdict.checks["gateway"] is True


@pytest.mark.parametrize("name", ["disk", "partner", "certificate", "redis", "provider", "clock"])
def test_a_dependency_degrades_and_never_takes_out(name):
    verdict = judge(STARTED, ACTIVE, sick(name), None, LIMITS)
    assert (verdict.status, verdict.line) == ("degraded", "up 100%\n")
    assert verdict.checks[name] is False and verdict.problems == [f"{name}: is sick"]


def test_all_dependencies_at_once_do_not_take_out_either():
    verdict = judge(STARTED, ACTIVE, {name: Finding(False, "x") for name in WELL}, None, LIMITS)
    assert (verdict.status, verdict.line) == ("degraded", "up 100%\n")


@pytest.mark.parametrize(
    "gateway, status, line",
    [
        (Gateway(says="started", gone=True), "down", "down #gateway: nothing listens on its port\n"),
        (Gateway(says="started", silent=6.1, seen="no answer within 2 s"), "down", "down #gateway: no good answer for 6.1 s (no answer within 2 s)\n"),
        (Gateway(says="starting"), "down", "down #gateway: it is starting\n"),
        (Gateway(says="starting", silent=3.0), "down", "down #gateway: it is starting\n"),
        (Gateway(says="started", silent=1.6), "degraded", "up 1%\n"),
        (Gateway(says="started", silent=1.5), "ok", "up 100%\n"),
        (Gateway(says="started", silent=6.0), "degraded", "up 1%\n"),
        (Gateway(says="draining"), "draining", "up 0%\n"),
        (Gateway(says="draining", silent=3.0), "draining", "up 0%\n"),
        (Gateway(says="draining", silent=6.1), "down", "down #gateway: no good answer for 6.1 s\n"),
        (Gateway(silent=0.1, seen="HTTP 403"), "degraded", "up 100%\n"),
        (Gateway(silent=2.0), "degraded", "up 1%\n"),
        (Gateway(silent=7.0), "down", "down #gateway: no good answer for 7.0 s\n"),
    ],
)
def test_the_gateway_decides(gateway, status, line):
    verdict = judge(gateway, ACTIVE, WELL, None, LIMITS)
    assert (verdict.status, verdict.line) == (status, line)
    assert verdict.checks["gateway"] is (status == "ok")


def test_a_unit_that_has_failed_is_down_although_something_answers():
    unit = checks.unit({"ActiveState": "failed", "Result": "exit-code", "ExecMainStatus": "78"}, 0, 3)
    verdict = judge(STARTED, unit, WELL, None, LIMITS)
    assert (verdict.status, verdict.line) == ("down", "down #unit: it is failed (result exit-code, exit status 78)\n")


def test_a_unit_that_stops_is_draining():
    verdict = judge(STARTED, checks.unit({"ActiveState": "deactivating"}, 0, 3), WELL, None, LIMITS)
    assert (verdict.status, verdict.line) == ("draining", "up 0%\n")


def test_a_unit_that_is_restarted_again_and_again_is_degraded():
    verdict = judge(STARTED, checks.unit({"ActiveState": "active"}, 3, 3), WELL, None, LIMITS)
    assert (verdict.status, verdict.problems) == ("degraded", ["unit: restarted 3 times in 5 minutes"])


def test_draining_wins_over_degraded_and_down_wins_over_draining():
    assert judge(STARTED, ACTIVE, WELL, SWITCH, LIMITS).status == "draining"
    drained = judge(STARTED, ACTIVE, sick("redis"), SWITCH, LIMITS)
    assert (drained.status, drained.problems, drained.line) == ("draining", ["redis: is sick"], "up 0%\n")
    stalled = judge(Gateway(says="started", silent=3), ACTIVE, WELL, SWITCH, LIMITS)
    assert (stalled.status, stalled.line) == ("draining", "up 0%\n")
    assert judge(Gateway(says="started", gone=True), ACTIVE, WELL, SWITCH, LIMITS).status == "down"


gateways = st.builds(Gateway, says=st.sampled_from(["", "started", "starting", "draining"]), silent=st.floats(0, 20), gone=st.booleans(), seen=st.text())
findings = st.dictionaries(st.sampled_from(CHECKS), st.builds(Finding, st.sampled_from([True, False, None]), st.text()))
units = st.builds(Unit, st.builds(Finding, st.booleans(), st.text()), st.booleans(), st.booleans())


@given(gateways, units, findings, st.sampled_from([None, SWITCH]))
def test_the_line_is_one_that_haproxy_takes_and_never_the_operators_word(gateway, unit, found, switch):
    verdict = judge(gateway, unit, found, switch, LIMITS)
    first = verdict.line.split()[0]
    assert verdict.line.endswith("\n") and verdict.line.count("\n") == 1 and verdict.line.isascii() and len(verdict.line) < 100
    assert (first, verdict.line.split()[1][0]) == ("down", "#") if verdict.status == "down" else verdict.line in ("up 0%\n", "up 1%\n", "up 100%\n")
    assert (verdict.status == "draining") == (verdict.line == "up 0%\n")
    others = {name: Finding(True) for name in found}
    dependency_free = judge(gateway, unit, others, switch, LIMITS)
    assert (verdict.status == "down") == (dependency_free.status == "down"), "a dependency took a replica out"
    json.dumps(document({"id": "a-1", "zone": "z"}, gateway, verdict, switch, "a"))


@given(gateways)
def test_only_a_gateway_that_serves_has_no_problem(gateway):
    state, problem = gateway_state(gateway, LIMITS)
    assert (state == "started") == (problem == "")


def test_the_document():
    verdict = judge(STARTED, ACTIVE, sick("redis", "gone"), None, LIMITS)
    assert document({"id": "node1-1", "zone": "main"}, STARTED, verdict, None, "node1") == {
        "status": "degraded",
        "replica": "node1-1",
        "host": "node1",
        "zone": "main",
        "version": "2026.9.6",
        "uptime_seconds": 12,
        "checks": {
            "disk": True,
            "gateway": True,
            "unit": True,
            "partner": True,
            "certificate": True,
            "redis": False,
            "provider": True,
            "clock": True,
        },
        "problems": ["redis: gone"],
        "drain": None,
        "observed_seconds": 0.3,
    }


# --- what a gateway says


@pytest.mark.parametrize(
    "status, body, says",
    [
        (200, {"ok": True, "status": "started", "version": "2026.9.6", "uptimeMs": 2758}, "started"),
        (503, {"ok": False, "status": "starting"}, "starting"),
        (503, {"ok": False, "status": "draining"}, "draining"),
        (200, {"ok": True, "status": "live"}, ""),
        (403, {"error": {"message": "Proxy client attribution is required"}}, ""),
        (200, [], ""),
        (200, "started", ""),
    ],
)
def test_what_a_gateway_says_is_in_its_json(status, body, says):
    answer = checks.startup(status, json.dumps(body))
    assert answer.says == says
    assert (answer.seen == "") == bool(says)


def test_html_is_no_answer():
    assert checks.startup(200, "<html>").seen == "HTTP 200 without the JSON of a gateway"


def test_version_and_uptime_of_a_gateway():
    answer = checks.startup(200, '{"status": "started", "version": "2026.9.6", "uptimeMs": 2758}')
    assert (answer.version, answer.uptime) == ("2026.9.6", 2)
    assert checks.startup(200, '{"status": "started", "uptimeMs": true}').uptime == 0


@pytest.mark.parametrize(
    "body, redis, provider, text",
    [
        ({"redis": True, "provider": True, "providers": {"cloud": True}}, True, True, ""),
        ({"redis": False, "provider": None}, False, None, ""),
        ({"redis": True, "provider": False, "providers": {"cloud": False, "other": True}}, True, False, "turns go past cloud"),
        ({"redis": True}, True, None, ""),
    ],
)
def test_redis_and_provider_come_from_the_replica_itself(body, redis, provider, text):
    found = checks.health(200, json.dumps(body))
    assert (found["redis"].ok, found["provider"].ok, found["provider"].problem) == (redis, provider, text)


@pytest.mark.parametrize("status, text", [(404, "{}"), (200, "<html>"), (200, "{}"), (200, '{"redis": "yes"}')])
def test_without_a_health_answer_redis_and_provider_are_unknown(status, text):
    found = checks.health(status, text)
    assert found["redis"].ok is found["provider"].ok is False and "unknown" in found["redis"].problem


# --- systemd


def test_blocks_of_systemctl():
    shown = checks.parse_show("Id=a.service\nActiveState=active\nNRestarts=2\n\nId=b.service\nActiveState=failed\n")
    assert shown["a.service"]["NRestarts"] == "2" and shown["b.service"]["ActiveState"] == "failed"
    assert checks.parse_show("") == {}


@pytest.mark.parametrize(
    "shown, ok, dead, text",
    [
        ({"ActiveState": "active"}, True, False, ""),
        ({"ActiveState": "inactive", "Result": "success"}, False, True, "it is inactive (result success)"),
        ({"ActiveState": "activating", "SubState": "auto-restart"}, False, False, "it is activating (auto-restart)"),
        (None, False, False, "systemd does not tell"),
        ({}, False, False, "it is unknown (unknown)"),
    ],
)
def test_units(shown, ok, dead, text):
    found = checks.unit(shown, 0, 3)
    assert (found.finding.ok, found.dead, found.finding.problem) == (ok, dead, text)


def test_restarts_are_counted_in_a_window_and_a_new_counter_is_no_restart():
    restarts = checks.Restarts(window=300)
    assert [restarts.observe(counter, now) for counter, now in ((7, 0), (8, 10), (8, 12), (10, 20))] == [0, 1, 1, 3]
    assert restarts.observe(0, 30) == 3, "a person started it: the counter begins again"
    assert restarts.observe(1, 311) == 3, "the first has left the window"
    assert restarts.observe(1, 700) == 0


# --- disk, partner, certificate, clock


def stat(**more):
    return types.SimpleNamespace(**({"f_blocks": 1000, "f_bfree": 500, "f_bavail": 450, "f_files": 100, "f_favail": 50} | more))


def test_blocks_that_only_root_may_use_count_as_used():
    found = checks.space(stat(f_bfree=60, f_bavail=10))
    assert found.free == pytest.approx(10 / 950)
    assert checks.space(stat(f_files=0)).inodes is None
    assert checks.space(stat(f_blocks=0, f_bfree=0, f_bavail=0)).free == 0


@pytest.mark.parametrize(
    "spaces, ok, text",
    [
        ({}, None, ""),
        ({"/a": checks.Space(0.5, 0.5)}, True, ""),
        ({"/a": checks.Space(0.1, None)}, True, ""),
        ({"/a": checks.Space(0.09, 0.5)}, False, "/a has 9% free"),
        ({"/a": checks.Space(0.5, 0.01)}, False, "/a has 1% of its inodes free"),
        ({"/a": "No such file or directory"}, False, "/a: No such file or directory"),
    ],
)
def test_disk(spaces, ok, text):
    assert checks.disk(spaces, 10, 5) == Finding(ok, text)


@pytest.mark.parametrize(
    "errors, ok, text",
    [({}, None, ""), ({"a:443": None}, True, ""), ({"a:443": None, "b:443": "refused"}, False, "b:443: refused")],
)
def test_partner(errors, ok, text):
    assert checks.partner(errors) == Finding(ok, text)


@pytest.mark.parametrize(
    "days, ok, text",
    [
        ({}, None, ""),
        ({"a": 14.0}, True, ""),
        ({"a": 13.4}, False, "a ends in 13 days"),
        ({"a": 300.0, "b": -0.1}, False, "b has expired"),
        ({"a": "cannot be read"}, False, "a: cannot be read"),
    ],
)
def test_certificate(days, ok, text):
    assert checks.certificate(days, 14) == Finding(ok, text)


@pytest.mark.parametrize(
    "result, status, offset, ok",
    [
        (0, 0x2001, 1_999_000_000, True),
        (0, 0x2001, -2_001_000_000, False),
        (0, 0x0001, 1_999_000, True),
        (0, 0x0001, 2_001_000, False),
        (5, 0x0001, 0, False),
        (0, 0x0041, 0, False),
    ],
)
def test_clock(result, status, offset, ok):
    assert checks.clock(checks.kernel_clock(result, status, offset), 2.0).ok is ok


def test_attention_stands_while_nobody_looks():
    attention = checks.Attention(100.0, most=0.5)
    assert attention.read(100.3) == pytest.approx(0.3)
    assert attention.read(160.0) == pytest.approx(0.8), "a minute in which the agent itself was stopped"
    assert attention.read(159.0) == pytest.approx(0.8)
