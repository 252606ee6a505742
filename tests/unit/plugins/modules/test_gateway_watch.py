"""gateway_watch with a systemctl on disk, an agent on loopback, and a process that holds memory in a child."""

from __future__ import annotations

import http.server
import json
import os
import re
import subprocess
import sys
import threading

import pytest

from ansible_collections.openclaw.ha.plugins.module_utils import processes
from ansible_collections.openclaw.ha.plugins.modules import gateway_watch

UNIT = "openclaw-gateway@1.service"
MEGABYTE = 2**20
#: A process whose child holds as many bytes as it is told.
GATEWAY = """
import subprocess, sys
child = "import sys\\nprint(flush=True)\\nfor line in sys.stdin: held = b'x' * int(line); print(flush=True)"
subprocess.run([sys.executable, "-c", child])
"""
SYSTEMCTL = """
import pathlib
print((pathlib.Path(__file__).parent / "shown").read_text(), end="")
"""


@pytest.fixture
def watched(program, tmp_path, monkeypatch, run_module):
    directory = program("systemctl", SYSTEMCTL).parent
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    gateway = subprocess.Popen([sys.executable, "-c", GATEWAY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    gateway.stdout.readline()
    base = sum(map(processes.held, processes.family(gateway.pid)))

    class Watched:
        status, looks, at_look, silent = "ok", 0, {}, ()

        def unit(self, **changed):
            shown = {
                "ActiveState": "active",
                "NRestarts": "2",
                "InvocationID": "a",
                "Result": "success",
                "MainPID": str(gateway.pid),
                "MemoryMax": str(base + 100 * MEGABYTE),
            }
            (directory / "shown").write_text("".join(f"{key}={value}\n" for key, value in (shown | changed).items()))

        def memory(self, megabytes):
            gateway.stdin.write(f"{megabytes * MEGABYTE}\n")
            gateway.stdin.flush()
            gateway.stdout.readline()

        def run(self, **options):
            replica = {"id": "a-1", "address": "127.0.0.1", "verdict_port": server.server_address[1]}
            given = {"seconds": 0.5, "interval": 0.05}
            return run_module(gateway_watch, replica=replica, unit=UNIT, **(given | options))

    found = Watched()
    found.unit()

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_arguments):
            pass

        def do_GET(self):
            found.looks += 1
            found.at_look.get(found.looks, lambda: None)()
            if found.looks in found.silent:
                return
            text = json.dumps({"replica": "a-1", "status": found.status, "checks": {"gateway": True}, "problems": ["gateway: it is gone"]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield found
    server.shutdown()
    server.server_close()
    gateway.communicate()


def test_one_that_stays_well(watched):
    result = watched.run(seconds=2)
    assert not result["failed"] and not result["changed"] and result["looks"] >= 2 and 0 < result["memory_percent"] < 50


def test_a_dry_run_looks_once(watched):
    assert watched.run(check=True, seconds=60)["looks"] == 1


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda one: one.unit(NRestarts="3", Result="oom-kill"), r"its unit has been started anew \(result oom-kill\)."),
        (lambda one: one.unit(InvocationID="b"), r"its unit has been started anew \(result success\)."),
        (lambda one: one.unit(ActiveState="failed"), "its unit is failed."),
        (lambda one: one.memory(99), r"it holds [89]\d(\.\d)? % of its memory limit, and 80 % counts as a leak."),
        (lambda one: setattr(one, "status", "down"), "its agent says down: gateway: it is gone."),
    ],
)
def test_one_that_gets_worse(watched, change, said):
    watched.at_look[3] = lambda: change(watched)
    result = watched.run(seconds=60)
    assert result["failed"] and re.fullmatch(rf"a-1: after \d+ s of 60 s, {said}", result["msg"]), result
    assert result["looks"] >= 3


def test_an_agent_that_is_silent_for_a_moment_is_forgiven_and_for_longer_it_is_not(watched):
    watched.silent = {2, 3}
    assert not watched.run(seconds=2)["failed"] and watched.looks > 3
    watched.silent = range(1000)
    result = watched.run(seconds=60)
    assert result["failed"] and "its agent says no answer" in result["msg"] and result["looks"] == gateway_watch.SILENT_LOOKS + 1


def test_degraded_is_well_enough(watched):
    watched.status = "degraded"
    assert not watched.run()["failed"]


@pytest.mark.parametrize("shown", [{"MemoryMax": "infinity"}, {"MainPID": "0"}, {"MemoryMax": ""}])
def test_without_a_limit_memory_is_nobodys_concern(watched, shown):
    watched.unit(**shown)
    result = watched.run(memory_percent=1)
    assert not result["failed"] and result["memory_percent"] is None
