# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""When a gateway replica counts as healthy. ``judge`` and ``Gate`` decide, ``fetch`` and ``wait`` do the I/O."""

from __future__ import annotations

import http.client
import json
import socket
import time
from dataclasses import dataclass, field

#: Probe path -> what its JSON must say. The status code alone proves nothing: the gateway answers 200 to unknown paths.
PROBES = {
    "/startupz": lambda body: body.get("ok") is True and body.get("status") == "started",
    "/readyz": lambda body: body.get("ready") is True,
    "/healthz": lambda body: body.get("ok") is True and body.get("status") == "live",
    "/api/v1/health": lambda body: body.get("status") in ("ok", "degraded"),
    # The agent's verdict. A gateway that does not answer just now is only degraded, too; a gate must not open for it.
    "/health": lambda body: body.get("status") in ("ok", "degraded") and _checks(body).get("gateway") is True,
}

#: The path whose answer is an agent's verdict.
VERDICT = "/health"

#: Exit status by which the gateway says that its configuration or state is unusable; the unit does not retry on it.
UNUSABLE = 78

_LIMIT = 65536


@dataclass(frozen=True)
class Sight:
    """What one probe saw: ``ok`` is the verdict, ``seen`` one short clause for people, ``version`` text or empty."""

    ok: bool
    seen: str
    version: str = ""
    verdict: dict = field(default_factory=dict)


def judge(path, status, text, expected_version="", replica=""):
    """Turn an HTTP answer to a probe into a :class:`Sight`; ``replica``: whose verdict it must be."""
    try:
        body = json.loads(text)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        return Sight(False, f"HTTP {status} without JSON: is this port {'an agent' if path == VERDICT else 'an OpenClaw gateway'}?")
    version = str(body.get("version") or "")
    if path == VERDICT:
        return _judge_verdict(status, body, version, expected_version, replica)
    if status != 200 or not PROBES[path](body):
        return Sight(False, f"HTTP {status}, {_summary(body)}", version)
    if expected_version and version and version != expected_version:
        return Sight(False, f"healthy, but runs version {version} instead of {expected_version}", version)
    return Sight(True, "healthy", version)


def _judge_verdict(status, body, version, expected_version, replica):
    """The same for an agent's verdict: what it says of each failing check is what people need to know."""
    if not _checks(body):
        return Sight(False, f"HTTP {status}, JSON that is no verdict")
    if replica and body.get("replica") != replica:
        return Sight(False, f"a verdict on {body.get('replica')} instead of {replica}", version)
    problems = "; ".join(str(problem) for problem in body.get("problems") or [])
    seen = str(body.get("status")) + (f": {problems}" if problems else "")
    drain = body.get("drain")
    if isinstance(drain, dict):
        seen += f" (drained since {drain.get('since')} by {drain.get('by')})"
    ok = status == 200 and PROBES[VERDICT](body)
    if ok and expected_version and version != expected_version:
        ok, seen = False, f"{seen}, but runs version {version or 'unknown'} instead of {expected_version}"
    return Sight(ok, seen, version, body)


def _checks(body):
    checks = body.get("checks")
    return checks if isinstance(checks, dict) else {}


def _summary(body):
    error = body.get("error")
    if isinstance(error, dict):
        return str(error.get("message") or error.get("type") or "an error without text")[:200]
    failing = body.get("failing")
    if failing:
        return "failing: " + ", ".join(str(item) for item in failing)[:200]
    parts = [f"{key} {body[key]}" for key in ("status", "ready", "ok", "pendingReason") if key in body]
    return ", ".join(parts)[:200] or "JSON that is not the probe's"


@dataclass
class Gate:
    """Counts consecutive successes; a single failure starts the count again."""

    needed: int
    row: int = 0
    probes: int = 0
    last: Sight = field(default_factory=lambda: Sight(False, "not probed"))

    def observe(self, sight):
        """Take in one :class:`Sight`; returns True once the gate is open."""
        self.probes += 1
        self.row = self.row + 1 if sight.ok else 0
        self.last = sight
        return self.row >= self.needed


def unit_failure(state):
    """Why waiting for a unit is pointless, or an empty text.

    :param state: dict from ``systemctl show``: ActiveState, Result, ExecMainStatus
    """
    if state.get("ActiveState") != "failed":
        return ""
    if state.get("ExecMainStatus") == str(UNUSABLE):
        return f"it exited with status {UNUSABLE}: configuration or state is unusable, and systemd does not try again"
    return (
        f"systemd gave it up (result {state.get('Result', 'unknown')}, exit status {state.get('ExecMainStatus', '?')})"
    )


def failure_message(replica_id, url, seconds, last, given_up, unit, journal):
    """The sentence for a replica that did not get healthy: who, what was seen, what to do."""
    lines = [f"Replica {replica_id} ({url}) is not healthy after {seconds:.0f} s: {last}."]
    if given_up:
        lines.append(f"Its unit {unit} has failed: {given_up}.")
        lines.append(f"Mend what the journal names, then run the playbook again (or: systemctl restart {unit}).")
    elif unit:
        lines.append(f"Look at: systemctl status {unit}; journalctl -u {unit}.")
    else:
        lines.append("Look at the unit's status and journal on its host.")
    if journal:
        lines.append(f"Last lines of the journal of {unit}:\n{journal}")
    return "\n".join(lines)


def fetch(address, port, path, token="", timeout=2.0):
    """Ask one probe; returns (HTTP status, text). Raises OSError or http.client.HTTPException."""
    connection = http.client.HTTPConnection(address, port, timeout=timeout)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {token}"} if token else {})
        response = connection.getresponse()
        return response.status, response.read(_LIMIT).decode("utf-8", "replace")
    finally:
        connection.close()


def look(replica, path, token="", timeout=2.0, expected_version=""):
    """Probe a replica (dict with address and port) once; never raises for what the network does."""
    try:
        status, text = fetch(replica["address"], replica["port"], path, token, timeout)
    except socket.timeout:
        return Sight(False, f"no answer within {timeout:g} s")
    except ConnectionRefusedError:
        return Sight(False, "connection refused: nothing listens there")
    except (OSError, http.client.HTTPException) as error:
        return Sight(False, f"no answer: {error or type(error).__name__}")
    return judge(path, status, text, expected_version, replica.get("id", ""))


def turn(replica, token, message, timeout):
    """Have a replica answer a message; a :class:`Sight` that never raises for what the network or the provider does.

    :param timeout: seconds for the whole turn
    """
    body = json.dumps({"channel": "health", "user_id": replica["id"], "message": message})
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
    connection = http.client.HTTPConnection(replica["address"], replica["port"], timeout=timeout)
    try:
        connection.request("POST", "/api/v1/message", body, headers)
        response = connection.getresponse()
        return judge_turn(response.status, response.read(_LIMIT).decode("utf-8", "replace"))
    except socket.timeout:
        return Sight(False, f"no answer to a message within {timeout:g} s")
    except (OSError, http.client.HTTPException) as error:
        return Sight(False, f"no answer to a message: {error or type(error).__name__}")
    finally:
        connection.close()


def judge_turn(status, text):
    """Turn the HTTP answer to a message into a :class:`Sight`."""
    try:
        body = json.loads(text)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        return Sight(False, f"a message was answered with HTTP {status} without JSON")
    if status == 200 and body.get("reply"):
        return Sight(True, "healthy, and it answered a message")
    return Sight(False, f"a message was answered with HTTP {status}, {_summary(body)}")


def wait(probe, given_up, successes, interval, deadline, clock=time.monotonic, sleep=time.sleep):
    """Probe until ``successes`` in a row, the deadline, or a unit that has failed for good.

    :param probe: function returning a :class:`Sight`
    :param given_up: function returning why waiting is pointless, or an empty text
    :param interval: seconds between probes; ``deadline``: seconds in all, at least one probe is made
    :returns: (opened, Gate, seconds, reason for giving up)
    """
    gate = Gate(successes)
    start = clock()
    while True:
        if gate.observe(probe()):
            return True, gate, clock() - start, ""
        reason = "" if gate.last.ok else given_up()
        elapsed = clock() - start
        if reason or elapsed + interval > deadline:
            return False, gate, elapsed, reason
        sleep(interval)
