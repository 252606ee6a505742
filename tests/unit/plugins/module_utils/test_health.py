from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.openclaw.ha.plugins.module_utils import health

STARTED = {"ok": True, "status": "started", "version": "2026.9.6", "uptimeMs": 2758}


@pytest.mark.parametrize(
    ("path", "status", "body", "ok", "seen"),
    [
        ("/startupz", 200, STARTED, True, "healthy"),
        ("/startupz", 200, {"ok": True, "status": "started"}, True, "healthy"),
        (
            "/startupz",
            503,
            {"ok": False, "status": "starting", "pendingReason": "sidecars"},
            False,
            "pendingReason sidecars",
        ),
        ("/startupz", 503, {"ok": False, "status": "draining"}, False, "HTTP 503, status draining"),
        ("/startupz", 200, {"ok": True, "status": "live"}, False, "HTTP 200, status live"),
        ("/startupz", 503, STARTED, False, "HTTP 503"),
        (
            "/startupz",
            403,
            {"error": {"message": "Proxy client attribution is required", "type": "x"}},
            False,
            "Proxy client",
        ),
        ("/startupz", 200, {}, False, "JSON that is not the probe's"),
        ("/readyz", 200, {"ready": True, "failing": []}, True, "healthy"),
        ("/readyz", 503, {"ready": False, "failing": ["telegram"]}, False, "failing: telegram"),
        ("/healthz", 200, {"ok": True, "status": "live"}, True, "healthy"),
        ("/api/v1/health", 200, {"status": "degraded", "redis": False}, True, "healthy"),
        ("/api/v1/health", 200, {"status": "down"}, False, "status down"),
    ],
)
def test_judged_by_its_json(path, status, body, ok, seen):
    sight = health.judge(path, status, json.dumps(body))
    assert sight.ok is ok and seen in sight.seen


@pytest.mark.parametrize("text", ["", "<html>Control UI</html>", "[]", "true", "null"])
def test_status_200_without_the_json_is_not_healthy(text):
    sight = health.judge("/startupz", 200, text)
    assert not sight.ok and "is this port an OpenClaw gateway?" in sight.seen


def verdict(status, gateway=True, **more):
    return json.dumps({"status": status, "replica": "node1-1", "version": "2026.9.6", "checks": {"gateway": gateway}, "problems": [], "drain": None} | more)


@pytest.mark.parametrize(
    ("status", "text", "ok", "seen"),
    [
        (200, verdict("ok"), True, "ok"),
        (200, verdict("degraded", problems=["redis: gone"]), True, "degraded: redis: gone"),
        (200, verdict("degraded", gateway=False, problems=["gateway: no good answer for 2.0 s"]), False, "degraded: gateway: no good answer"),
        (503, verdict("down", gateway=False, problems=["gateway: nothing listens", "redis: gone"]), False, "down: gateway: nothing listens; redis: gone"),
        (200, verdict("draining", drain={"since": "10:00", "by": "ada"}), False, "draining (drained since 10:00 by ada)"),
        (503, verdict("ok"), False, "ok"),
        (200, verdict("ok", replica="node1-2"), False, "a verdict on node1-2 instead of node1-1"),
        (200, verdict("ok", version="2026.9.5"), False, "runs version 2026.9.5 instead of 2026.9.6"),
        (200, verdict("ok", version=""), False, "runs version unknown instead of 2026.9.6"),
        (200, json.dumps({"ok": True, "status": "live"}), False, "JSON that is no verdict"),
        (200, json.dumps({"ok": True, "status": "ok"}), False, "JSON that is no verdict"),
        (200, "<html>", False, "is this port an agent?"),
    ],
)
def test_a_verdict_says_which_check_failed(status, text, ok, seen):
    sight = health.judge("/health", status, text, "2026.9.6", "node1-1")
    assert sight.ok is ok and seen in sight.seen


def test_version():
    assert health.judge("/startupz", 200, json.dumps(STARTED), "2026.9.6").ok
    other = health.judge("/startupz", 200, json.dumps(STARTED), "2026.9.7")
    assert (other.ok, other.version, other.seen) == (
        False,
        "2026.9.6",
        "healthy, but runs version 2026.9.6 instead of 2026.9.7",
    )
    assert health.judge("/startupz", 200, '{"ok": true, "status": "started"}', "2026.9.7").ok


@given(st.integers(100, 599), st.text())
def test_any_answer_gets_a_verdict(status, text):
    assert isinstance(health.judge("/readyz", status, text).ok, bool)


@given(st.lists(st.booleans(), max_size=30), st.integers(1, 5))
def test_the_gate_opens_after_so_many_in_a_row(observed, needed):
    gate = health.Gate(needed)
    opened = [gate.observe(health.Sight(ok, "")) for ok in observed]
    for index, is_open in enumerate(opened):
        assert is_open == (index + 1 >= needed and all(observed[index + 1 - needed : index + 1]))


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


def waiting(sights, given_up=lambda: "", successes=2, interval=1, deadline=10):
    clock, left = Clock(), list(sights)

    def probe():
        return health.Sight(left.pop(0) if left else sights[-1], "seen")

    return health.wait(probe, given_up, successes, interval, deadline, clock, clock.sleep)


def test_wait_until_healthy():
    opened, gate, seconds, reason = waiting([False, True, False, True, True])
    assert (opened, gate.probes, seconds, reason) == (True, 5, 4, "")


def test_wait_until_the_deadline():
    opened, gate, seconds, reason = waiting([False])
    assert (opened, gate.probes, seconds, reason) == (False, 11, 10, "")


def test_no_waiting_for_a_unit_that_has_failed():
    opened, gate, seconds, reason = waiting([False], lambda: "gone")
    assert (opened, gate.probes, seconds, reason) == (False, 1, 0, "gone")


def test_at_least_one_probe():
    assert waiting([True], successes=1, deadline=0)[0]


def test_unit_failure():
    assert health.unit_failure({}) == health.unit_failure({"ActiveState": "activating"}) == ""
    assert "status 78" in health.unit_failure({"ActiveState": "failed", "ExecMainStatus": "78"})
    assert "result start-limit-hit" in health.unit_failure(
        {"ActiveState": "failed", "ExecMainStatus": "1", "Result": "start-limit-hit"}
    )
