"""The agent as a real process between gateways that misbehave and a systemctl that says what a test wants."""

import contextlib
import http.server
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

from tests.ports import free_port

PACKAGE = pathlib.Path(__file__).resolve().parents[3] / "roles/agent/files"

#: What stands in for systemd: a file with the blocks of `systemctl show`, or "hang".
SYSTEMCTL = """#!{python}
import pathlib, sys, time
text = pathlib.Path({answers!r}).read_text()
while text == "hang":
    time.sleep(0.1)
sys.stdout.write(text)
"""


def until(condition, seconds=10):
    """Poll until ``condition()`` is true; returns its value, or fails at the deadline."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.01)  # between two looks
    return value


class Gateway:
    """A gateway's probes on a port of its own: says ``status``, or is silent while ``frozen``."""

    def __init__(self, name, port=None):
        self.name, self.port = name, port or free_port()
        self.status, self.health = "started", {"redis": True, "ollama": None, "provider": True, "providers": {"cloud": True}}
        self.awake, self.served, self.server = threading.Event(), [], None
        self.awake.set()
        self.start()

    def start(self):
        gateway = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_arguments):
                pass

            def do_GET(self):
                gateway.awake.wait(60)
                code, body = 200, {**gateway.health, "status": "ok"}
                if self.path == "/startupz":
                    code = 200 if gateway.status == "started" else 503
                    body = {"ok": code == 200, "status": gateway.status, "version": "2026.9.6", "uptimeMs": 12345}
                elif self.path != "/api/v1/health":
                    gateway.served.append(self.path)
                    body = {"from": gateway.name}
                raw = json.dumps(body, separators=(",", ":")).encode()
                with contextlib.suppress(ConnectionError):
                    self.send_response(code)
                    self.send_header("Content-Length", str(len(raw)))
                    self.end_headers()
                    self.wfile.write(raw)

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

        self.server = Server(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def freeze(self):
        """Connections are accepted, nothing is answered: what a stopped process or a busy event loop looks like."""
        self.awake.clear()

    def thaw(self):
        self.awake.set()

    def stop(self):
        """The process is gone: connections are refused."""
        self.thaw()
        if self.server:
            self.server.shutdown()
            self.server.server_close()
            self.server = None


class Agent:
    """The service in a process of its own, with quick intervals."""

    def __init__(self, directory, gateways, settings):
        self.directory, self.gateways = directory, gateways
        self.config_file, self.log_file = directory / "config.json", directory / "agent.log"
        (directory / "bin").mkdir(exist_ok=True)
        self.units = directory / "units"
        program = directory / "bin/systemctl"
        program.write_text(SYSTEMCTL.format(python=sys.executable, answers=str(self.units)))
        program.chmod(0o755)
        self.replicas = [
            {
                "id": gateway.name,
                "zone": "main",
                "port": gateway.port,
                "unit": f"openclaw-gateway@{number}.service",
                "verdict_port": free_port(),
                "check_port": free_port(),
            }
            for number, gateway in enumerate(gateways, 1)
        ]
        self.config = base_config(directory) | {"replicas": self.replicas} | settings
        self.process = None
        self.systemd()
        self.write()

    def write(self):
        self.config_file.write_text(json.dumps(self.config))

    def systemd(self, **more):
        """What systemctl says of all units from now on."""
        shown = {"ActiveState": "active", "SubState": "running", "Result": "success", "ExecMainStatus": "0", "NRestarts": "0"} | more
        blocks = [[f"Id={one['unit']}", *(f"{key}={value}" for key, value in shown.items())] for one in self.replicas]
        self.units.write_text("\n\n".join("\n".join(block) for block in blocks) + "\n")

    def environment(self):
        return {**os.environ, "PYTHONPATH": str(PACKAGE), "PATH": f"{self.directory}/bin:{os.environ['PATH']}"}

    def command(self, *words):
        """``openclaw-agent`` with some words; returns the finished process."""
        call = [sys.executable, "-B", "-m", "openclaw_agent", "--config", str(self.config_file), *words]
        return subprocess.run(call, env=self.environment(), capture_output=True, text=True, timeout=30, check=False)

    def start(self):
        call = [sys.executable, "-B", "-m", "openclaw_agent", "--config", str(self.config_file), "serve"]
        with self.log_file.open("a") as log:
            self.process = subprocess.Popen(call, env=self.environment(), stdout=log, stderr=log)
        until(self.answers, 20)
        return self

    def answers(self):
        assert self.process.poll() is None, self.log()
        with contextlib.suppress(OSError):
            return all(self.line(one["id"]) for one in self.replicas)
        return False

    def stop(self, number=signal.SIGTERM):
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(number)
            self.process.wait(10)

    def log(self):
        return self.log_file.read_text()

    def replica(self, name):
        return next(one for one in self.replicas if one["id"] == name)

    def verdict(self, name="r1"):
        """(HTTP status, body) of a replica's verdict."""
        url = f"http://127.0.0.1:{self.replica(name)['verdict_port']}/health"
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def status(self, name="r1"):
        return self.verdict(name)[1]["status"]

    def metrics(self, name="r1"):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.replica(name)['verdict_port']}/metrics", timeout=5) as response:
            return response.read().decode()

    def line(self, name="r1"):
        """The agent-check's line."""
        with socket.create_connection(("127.0.0.1", self.replica(name)["check_port"]), timeout=5) as client:
            return client.makefile().read()


def base_config(directory):
    """A whole configuration with quick intervals and nothing to look at but gateway and unit."""
    return {
        "host": "node1",
        "address": "127.0.0.1",
        "replicas": [],
        "inputs": {},
        "stalled_after": 1.5,
        "dead_after": 6.0,
        "gateway_interval": 0.1,
        "gateway_timeout": 2.0,
        "health_interval": 0.2,
        "unit_interval": 0.2,
        "restarts": 3,
        "disk_paths": [],
        "disk_free_percent": 10,
        "disk_inodes_percent": 5,
        "disk_interval": 0.2,
        "partner": [],
        "partner_ca": "",
        "partner_interval": 0.2,
        "partner_timeout": 2.0,
        "certificates": [],
        "certificates_file": str(directory / "certificates.json"),
        "certificate_days": 14,
        "certificate_interval": 0.5,
        "clock": False,
        "clock_max_offset": 2.0,
        "clock_interval": 0.2,
        "drain_directory": str(directory / "drain"),
    }
