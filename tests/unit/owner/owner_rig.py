"""Daemons as real processes, with gateways that are small processes of their own and do what their files say."""

import contextlib
import http.client
import http.server
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

from openclaw_owner import cli

from tests.ports import free_port

ROOT = pathlib.Path(__file__).resolve().parents[3]
PACKAGES = os.pathsep.join(str(ROOT / f"roles/{name}/files") for name in ("owner", "ingress"))

POLL = {"id": "telegram/poll", "linger_seconds": 0, "section": "channels", "content": {"telegram": {"accounts": {"poll": {"enabled": True}}}}}
CRON = {"id": "cron", "linger_seconds": 0, "section": "cron", "content": {"enabled": True}}
CONTENTS = {one["id"]: one for one in (POLL, CRON)}

#: A gateway: reads its files again and again, notes what is on and when that changed, and answers what a gateway answers. argv: directory, port
GATEWAY = """
import http.server, json, os, sys, threading, time
directory, port = sys.argv[1], int(sys.argv[2])
on, started = [], time.time()

def says(name, *path):
    try:
        with open(os.path.join(directory, name)) as file:
            found = json.load(file)
        for one in path:
            found = found[one]
        return found is True
    except (OSError, ValueError, KeyError, TypeError):
        return False

def follow():
    seen = ()
    while True:
        # As a watcher that notices changes, and may miss one.
        here = os.path.join(directory, "channels.json")
        now = os.stat(here).st_ino if os.path.exists(here) else 0
        if os.path.exists(os.path.join(directory, "misses")) and now != seen and now and os.path.getsize(here) > 5:
            os.unlink(os.path.join(directory, "misses"))
            seen = now
            missed = True
        elif now != seen:
            seen, missed = now, False
        if missed:
            time.sleep(0.02)  # between two looks at its files
            continue
        if not os.path.exists(os.path.join(directory, "deaf")):
            now = [name for name, there in (("telegram/poll", says("channels.json", "telegram", "accounts", "poll", "enabled")),
                                            ("cron", says("cron.json", "enabled"))) if there]
            if now != on:
                on[:] = now
                with open(os.path.join(directory, "history"), "a") as file:
                    file.write(json.dumps([os.getpid(), now]) + chr(10))
        time.sleep(0.02)  # between two looks at its files

class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_arguments):
        pass
    def do_GET(self):
        known = self.headers.get("Authorization") == "Bearer s3cret-token"
        if "leaving=telegram/poll" in self.path:
            open(os.path.join(directory, "leaving"), "w").close()
        if "keeping=telegram/poll" in self.path:
            open(os.path.join(directory, "keeping"), "w").close()
        busy = ["telegram/poll"] if os.path.exists(os.path.join(directory, "busy")) else []
        raw = json.dumps({"pid": os.getpid(), "on": on, "busy": busy} if known else {"error": "who are you?"}).encode()
        self.send_response(200 if known else 401)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

threading.Thread(target=follow, daemon=True).start()
server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
server.serve_forever(poll_interval=0.05)
"""

#: Tells of units by the files that the tests keep, as ``systemctl show --property=... -- UNIT``.
SYSTEMCTL = """#!/bin/sh
cat "{directory}/$4" 2>/dev/null || printf 'MainPID=0\\nActiveState=inactive\\n'
"""


def until(condition, seconds=30):
    """Poll until ``condition()`` is true; returns its value, or fails at the deadline."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.01)  # between two looks
    return value


def token(redis):
    """The token of the latest grant."""
    return int(redis.hget("oc:owner:telegram/poll", "token") or 0)


def lines(daemon, *words):
    """Lines of a log that have all words."""
    return [line for line in daemon.log().splitlines() if all(word in line for word in words)]


class Gateway:
    """One replica: a process, its unit's state, and its agent's verdict, which is that the process lives unless a test says something else."""

    def __init__(self, directory, name, units, proof):
        self.name, self.directory, self.units = name, directory / name, units
        self.directory.mkdir()
        self.port, self.unit, self.proof = free_port(), f"openclaw-gateway@{name}.service", proof
        self.process, self.said = None, None
        gateway = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_arguments):
                pass

            def do_GET(self):
                raw = json.dumps({"status": gateway.status, "observed_seconds": 0.01}).encode()
                with contextlib.suppress(ConnectionError):
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(raw)))
                    self.end_headers()
                    self.wfile.write(raw)

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

        self.agent = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.agent.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        self.start()

    @property
    def status(self):
        return self.said or ("ok" if self.process.poll() is None else "down")

    @property
    def configured(self):
        where = self.directory
        found = {"id": self.name, "unit": self.unit, "verdict_url": f"http://127.0.0.1:{self.agent.server_port}/health"}
        found["sections"] = {one: str(where / f"{one}.json") for one in ("channels", "cron")}
        return found | ({"proof_url": f"http://127.0.0.1:{self.port}/api/v1/owned"} if self.proof else {})

    def start(self):
        self.process = subprocess.Popen([sys.executable, "-B", "-S", "-c", GATEWAY, str(self.directory), str(self.port)])
        self.show("active")

    def show(self, state):
        """What systemd says of its unit."""
        path = self.units / self.unit
        path.with_suffix(".new").write_text(f"MainPID={self.process.pid if self.process.poll() is None else 0}\nActiveState={state}\n")
        path.with_suffix(".new").replace(path)

    def die(self, number=signal.SIGKILL):
        self.process.send_signal(signal.SIGCONT)
        self.process.send_signal(number)
        self.process.wait(30)
        self.show("failed")

    def deaf(self, really=True):
        """It does not read its files any more."""
        path = self.directory / "deaf"
        path.touch() if really else path.unlink()

    def file(self, section="channels"):
        return json.loads((self.directory / f"{section}.json").read_text())

    def on(self):
        """What is on in the process that lives."""
        if self.process.poll() is not None:
            return []
        found = [one for one in self.history() if one[0] == self.process.pid]
        return found[-1][1] if found else []

    def history(self):
        """List of (pid, what was on from then on)."""
        path = self.directory / "history"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def end(self):
        if self.process.poll() is None:
            self.die()
        self.agent.shutdown()
        self.agent.server_close()


class Daemon:
    """One host's daemon."""

    def __init__(self, directory, name, redis_port, gateways, settings):
        self.name, self.gateways, self.process = name, gateways, None
        self.directory, self.log_file, self.config_file = directory, directory / f"{name}.log", directory / f"{name}.json"
        self.config = {
            "host": name,
            "status_port": free_port(),
            "redis": {"address": f"127.0.0.1:{redis_port}"},
            "state_file": str(directory / f"{name}-run" / "state.json"),
            "systemctl": str(directory / "systemctl"),
            "proof_token_file": str(directory / "token"),
            "singletons": [POLL],
            "replicas": [one.configured for one in gateways],
            "wait_replicas": 0,
            "redis_timeout": 1.0,
            # Long for a busy machine: only what a test waits for is short.
            "lease_seconds": 60,
            "renew_seconds": 0.2,
            "stop_seconds": 40,
            "proof_seconds": 20,
            "fence_seconds": 1,
            "settle_seconds": 0.5,
            "nudge_seconds": 1,
            "verdict_grace": 20,
            "interval": 0.05,
            "look_seconds": 0.1,
            "step_seconds": 0.2,
            "retry_seconds": 0.1,
        } | settings
        self.write()

    def write(self):
        self.config_file.write_text(json.dumps(self.config))

    def start(self):
        call = [sys.executable, "-B", "-m", "openclaw_owner", "--config", str(self.config_file), "serve"]
        with self.log_file.open("a") as log:
            self.process = subprocess.Popen(call, env={**os.environ, "PYTHONPATH": PACKAGES}, stdout=log, stderr=log)
        return self

    def ready(self):
        until(self._answers)
        return self

    def _answers(self):
        assert self.process.poll() is None, self.log()
        with contextlib.suppress(OSError):
            return self.health()
        return None

    def command(self, *words):
        """``openclaw-owner`` with some words: (exit status, standard output, standard error)."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = cli.main(["--config", str(self.config_file), *words])
            except SystemExit as end:
                code = end.code
        return code, out.getvalue(), err.getvalue()

    def health(self):
        return json.loads(self.ask("/health"))

    def singleton(self, name="telegram/poll"):
        return self.health()["singletons"][name]

    def ask(self, path):
        connection = http.client.HTTPConnection("127.0.0.1", self.config["status_port"], timeout=20)
        try:
            connection.request("GET", path)
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def metric(self, name, **labels):
        """A sample's value, summed over the labels that are not given."""
        total = 0.0
        for line in self.ask("/metrics").splitlines():
            sample, _space, value = line.rpartition(" ")
            if sample.partition("{")[0] == f"openclaw_owner_{name}" and all(f'{key}="{one}"' in sample for key, one in labels.items()):
                total += float(value)
        return total

    def signal(self, number):
        self.process.send_signal(number)

    def kill(self):
        """As systemd sees it through: it dies, and ``off`` is run."""
        self.signal(signal.SIGKILL)
        self.process.wait(30)
        assert self.command("off") == (0, "", "")

    def stop(self):
        if self.process and self.process.poll() is None:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGTERM)
        return self.process.wait(60) if self.process else None

    def log(self):
        return self.log_file.read_text() if self.log_file.exists() else ""


class Cluster:
    """Hosts h1, h2, ... with a daemon and gateways h1-1, h1-2, ... each."""

    def __init__(self, directory, redis_port, hosts, replicas, settings):
        proof, started = settings.pop("proof", True), settings.pop("started", True)
        units = directory / "units"
        units.mkdir()
        tool = directory / "systemctl"
        tool.write_text(SYSTEMCTL.format(directory=units))
        (directory / "token").write_text("s3cret-token\n")
        tool.chmod(0o755)
        self.gateways, self.daemons = [], []
        for host in range(1, hosts + 1):
            mine = [Gateway(directory, f"h{host}-{number}", units, proof) for number in range(1, replicas + 1)]
            self.gateways += mine
            self.daemons.append(Daemon(directory, f"h{host}", redis_port, mine, settings))
        if started:
            for one in self.daemons:
                one.start()
            for one in self.daemons:
                one.ready()

    def owners(self, name="telegram/poll"):
        """The gateways in which a singleton is on."""
        return [one for one in self.gateways if name in one.on()]

    def owner(self, *others, name="telegram/poll"):
        """Wait until one has it that is none of ``others``: (its gateway, its daemon)."""
        (gateway,) = until(lambda: self.once(name, others))
        return gateway, next(one for one in self.daemons if gateway in one.gateways)

    def once(self, name, others):
        owners = self.owners(name)
        assert len(owners) <= 1, [one.name for one in owners]
        return owners if owners and owners[0] not in others else None

    def end(self):
        # All at once: each gives up what it has.
        for one in self.daemons:
            if one.process and one.process.poll() is None:
                one.signal(signal.SIGCONT)
                one.signal(signal.SIGKILL)
                one.process.wait(30)
        for one in self.gateways:
            one.end()
