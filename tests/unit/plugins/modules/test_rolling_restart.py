"""rolling_restart against agents on loopback, and a systemctl on disk."""

from __future__ import annotations

import http.server
import json
import os
import re
import stat
import threading
import time

import pytest

from ansible_collections.openclaw.ha.plugins.modules import rolling_restart

UNIT = "openclaw-gateway@1.service"
SYSTEMCTL = """
import pathlib, sys
here = pathlib.Path(__file__).parent
with open(here / "calls", "a") as log:
    log.write(" ".join(sys.argv[1:]) + "\\n")
if sys.argv[1] == "show":
    print("ActiveState=" + ((here / "active").read_text() if (here / "active").exists() else "active"))
if (here / "refuse").exists() and sys.argv[1] == (here / "refuse").read_text():
    sys.exit("it will not")
"""


class Agent:
    """Says of one replica what the test wants; None is no answer at all."""

    def __init__(self, name):
        self.name, self.status, self.drain, self.asked = name, "ok", None, 0
        agent = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_arguments):
                pass

            def do_GET(self):
                agent.asked += 1
                if agent.status is None:
                    return self.close_connection
                body = {"replica": agent.name, "status": agent.status, "checks": {"gateway": True}, "problems": [], "drain": agent.drain}
                text = json.dumps(body).encode()
                self.send_response(503 if agent.status == "down" else 200)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def row(self):
        return {"id": self.name, "address": "127.0.0.1", "verdict_port": self.server.server_address[1]}

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def host(program, tmp_path, monkeypatch, run_module):
    directory = program("systemctl", SYSTEMCTL).parent
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    agents = [Agent(name) for name in ("a-1", "b-1", "c-1")]
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/openclaw.json").write_text("old")
    (tmp_path / "etc/openclaw.json").chmod(0o640)

    class Host:
        own, *peers = agents
        bin = directory
        record = tmp_path / "rolling/1"
        config, limits = tmp_path / "etc/openclaw.json", tmp_path / "etc/limits.conf"

        def run(self, state="taken", check=False, **options):
            given = {
                "replica": self.own.row(),
                "unit": UNIT,
                "state": state,
                "record": str(self.record),
                "behind": True,
                "peers": [peer.row() for peer in self.peers],
                "files": [str(self.config), str(self.limits)],
                "patience": 0.0,
                "interval": 0.02,
            }
            return run_module(rolling_restart, check=check, **(given | options))

        def verbs(self):
            return [line.split()[0] for line in (directory / "calls").read_text().splitlines() if not line.startswith("show")]

    yield Host()
    for agent in agents:
        agent.close()


def test_a_replica_is_taken_when_the_others_serve_and_what_it_was_is_kept_first(host):
    assert host.run(check=True)["step"] == "take" and not host.record.exists()
    result = host.run()
    assert (result["step"], result["why"], result["changed"]) == ("take", "b-1, c-1 serve", True)
    assert stat.S_IMODE(host.record.stat().st_mode) == 0o700
    kept = json.loads((host.record / "record.json").read_text())
    assert kept["files"][str(host.limits)] is None and kept["began"].startswith("20")
    assert open(kept["files"][str(host.config)]).read() == "old"


def test_nothing_is_to_be_done_where_it_runs_what_it_should(host):
    host.peers[0].status = "down"
    result = host.run(behind=False)
    assert (result["step"], result["changed"]) == ("skip", False)


def test_a_peer_that_is_sick_is_waited_for(host):
    host.peers[1].status = "down"
    asked = host.peers[1].asked

    def heal():
        while host.peers[1].asked < asked + 3:
            time.sleep(0.01)  # until it was asked again
        host.peers[1].status = "degraded"

    threading.Thread(target=heal, daemon=True).start()
    result = host.run(patience=20.0)
    assert result["step"] == "take" and result["waited"] < 20


@pytest.mark.parametrize(
    "status, drain, said",
    [("down", None, "c-1 is down"), (None, None, "c-1 gives no verdict"), ("draining", {"since": "", "by": "ann", "reason": "disk"}, "c-1 is drained (disk)")],
)
def test_and_if_it_stays_so_nothing_is_touched_and_it_is_named(host, status, drain, said):
    host.peers[1].status, host.peers[1].drain = status, drain
    result = host.run()
    assert result["failed"] and re.search(rf"a-1 is left as it is: {re.escape(said)}, for \d+ s\.", result["msg"])
    assert not host.record.exists() and not host.verbs()
    assert host.run(check=True)["step"] == "wait"


def test_no_more_than_may_be_out_are_out(host):
    host.peers[0].status, host.peers[0].drain = "draining", {"since": "", "by": "root", "reason": "rolling"}
    assert "b-1 is out already, and 1 may be" in host.run()["msg"]
    assert host.run(max_unavailable=2)["step"] == "take"
    assert "at least 1" in host.run(max_unavailable=0)["msg"]


def test_without_a_verdict_of_its_own_it_is_not_taken(host):
    host.own.status = None
    result = host.run()
    assert result["failed"] and "a-1: no verdict of its own agent" in result["msg"] and not host.record.exists()


def test_one_that_does_not_run_is_started_whatever_the_others_do(host):
    (host.bin / "active").write_text("failed")
    host.own.status = host.peers[0].status = "down"
    assert host.run()["step"] == "start"


def test_what_a_dead_run_left_drained_is_gone_on_with_and_its_record_stays_as_it_was(host):
    host.run()
    before = (host.record / "record.json").read_text()
    host.config.write_text("new")
    host.own.status, host.own.drain = "draining", {"since": "", "by": "root", "reason": "rolling"}
    host.peers[0].status = "down"
    assert host.run()["step"] == host.run(behind=False)["step"] == "resume"
    assert (host.record / "record.json").read_text() == before


def test_what_a_dead_run_had_finished_is_closed(host):
    host.run()
    assert host.run(behind=False)["step"] == "close" and not host.record.exists()


def test_back_means_the_files_as_they_were_and_a_unit_that_runs_with_them(host):
    host.run()
    host.config.write_text("new")
    host.config.chmod(0o600)
    host.limits.write_text("[Service]")
    assert host.run("back", check=True)["changed"] and host.config.read_text() == "new"
    assert host.run("back")["possible"]
    assert host.config.read_text() == "old" and stat.S_IMODE(host.config.stat().st_mode) == 0o640
    assert not host.limits.exists() and host.verbs() == ["stop", "daemon-reload", "reset-failed", "start"]
    assert host.run("done")["changed"] and not host.record.exists() and not host.run("done")["changed"]


def test_what_was_not_changed_yet_is_left_running(host):
    host.run()
    result = host.run("back")
    assert result["possible"] and not result["changed"] and not host.verbs()
    (host.bin / "active").write_text("inactive")
    assert host.run("back")["changed"] and host.verbs()[-1] == "start"


def test_there_is_no_way_back_to_what_never_was(host):
    host.config.unlink()
    (host.bin / "active").write_text("inactive")
    assert host.run()["step"] == "start"
    result = host.run("back")
    assert not result["possible"] and not result["changed"] and not host.verbs()


def test_a_record_that_was_cut_short_is_none(host):
    host.run()
    (host.record / "record.json").write_text("{")
    assert host.run()["step"] == "take"
    assert json.loads((host.record / "record.json").read_text())["files"]


def test_a_unit_that_cannot_be_stopped_is_said(host):
    host.run()
    host.config.write_text("new")
    (host.bin / "refuse").write_text("stop")
    result = host.run("back")
    assert result["failed"] and "a-1: systemctl stop" in result["msg"] and "it will not" in result["msg"]
