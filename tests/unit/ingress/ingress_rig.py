"""Ingresses as real processes, in front of replicas that claim messages as the gateways' plugin does."""

import collections
import concurrent.futures
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
import urllib.parse

from openclaw_ingress import cli

from tests.ports import free_port

PACKAGE = pathlib.Path(__file__).resolve().parents[3] / "roles/ingress/files"
SECRETS = ("s3cret-new", "s3cret-old")
#: Stands in every text that somebody sends, and in no log.
WORDS = "my private words"
HEADER = "X-Telegram-Bot-Api-Secret-Token"
#: Milliseconds of a claim's lease; the plugin's is 10 s.
LEASE = 300


def until(condition, seconds=30):
    """Poll until ``condition()`` is true; returns its value, or fails at the deadline."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.01)  # between two looks
    return value


def update(number, chat=42, **more):
    """An update of Telegram with message id ``number``; ``more`` goes into the message."""
    message = {"message_id": number, "date": 1, "chat": {"id": chat}, "from": {"id": chat}, "text": f"{WORDS} {number}"} | more
    return {"update_id": 1000 + number, "message": message}


def claim_key(chat, message):
    """As lib/keys.js makes it."""
    return "oc:dedupe:" + ":".join(urllib.parse.quote(str(one), safe="!~*'()") for one in ("telegram", "default", chat, message))


class Replica:
    """A gateway with its agent's verdict.

    mode: ``commit`` claims and settles at once, ``hold`` claims and runs the turn until :meth:`finish`, ``silent`` answers 200 and nothing more, ``hang``
    answers nothing; a number is the status it answers
    """

    def __init__(self, name, redis, mode="commit"):
        self.name, self.redis, self.mode, self.status = name, redis, mode, "ok"
        self.port, self.born = free_port(), time.time() - 1000
        #: (headers, body) of each POST; message ids whose turns were committed, in order
        self.received, self.turns, self.looks = [], [], 0
        self.lock, self.running, self.alive, self.server = threading.Lock(), {}, True, None
        self.start()

    @property
    def configured(self):
        where = f"http://127.0.0.1:{self.port}"
        return {"id": self.name, "verdict_url": f"{where}/health", "webhooks": {"telegram/default": f"{where}/telegram-webhook"}}

    @property
    def messages(self):
        """Message ids of all POSTs."""
        return [json.loads(body)["message"]["message_id"] for _headers, body in list(self.received)]

    def start(self):
        replica = self
        self.alive = True

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_arguments):
                pass

            def answer(self, status, document):
                raw = json.dumps(document).encode()
                with contextlib.suppress(ConnectionError):
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(raw)))
                    self.end_headers()
                    self.wfile.write(raw)

            def do_GET(self):
                replica.looks += 1
                if replica.status is None:  # its agent is starting anew
                    self.answer(500, {})
                    return
                uptime = int(time.time() - replica.born)
                document = {"status": replica.status, "uptime_seconds": uptime, "observed_seconds": 0.05, "version": "2026.9.6"}
                self.answer(503 if replica.status == "down" else 200, document)

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                mode = replica.mode
                with replica.lock:
                    replica.received.append((self.headers, body))
                if mode == "hang":
                    until(lambda: replica.mode != "hang" or not replica.alive, 60)
                    self.close_connection = True
                elif isinstance(mode, int):
                    self.answer(mode, {})
                else:
                    self.answer(200, {})
                    if mode != "silent":
                        replica.turn(json.loads(body)["message"], mode == "hold")

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256

        self.server = Server(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def turn(self, message, hold):
        """What the plugin's before_dispatch and the turn's end do."""
        key, number = claim_key(message["chat"]["id"], message["message_id"]), message["message_id"]
        if not self.redis.set(key, json.dumps({"state": "running", "owner": self.name, "fingerprint": ""}), nx=True, px=LEASE):
            return
        finish = self.running[number] = threading.Event()
        while hold and not finish.wait(LEASE / 3000):
            if not self.alive:
                return
            self.redis.pexpire(key, LEASE)
        if self.alive:
            with self.lock:
                self.turns.append(number)
            self.redis.set(key, json.dumps({"state": "done", "fingerprint": ""}), ex=86400)

    def finish(self, number):
        until(lambda: number in self.running)
        self.running[number].set()

    def die(self):
        """Connections are refused, claims are not renewed."""
        self.alive = False
        if self.server:
            self.server.shutdown()
            self.server.server_close()
            self.server = None

    def restart(self, mode):
        """A new process on the same port, as quick as none really is."""
        self.die()
        self.born, self.mode = time.time(), mode
        self.start()


class Ingress:
    """One ingress in a process of its own, with quick intervals."""

    def __init__(self, directory, name, redis_address, replicas, settings):
        self.directory, self.name, self.process = directory, name, None
        self.config_file, self.log_file = directory / f"{name}.json", directory / f"{name}.log"
        for number, one in enumerate(SECRETS):
            (directory / f"secret-{number}").write_text(f"{one}\n")
        self.config = {
            "host": name,
            "address": "127.0.0.1",
            "port": free_port(),
            "status_port": free_port(),
            "redis": {"address": redis_address},
            "accounts": [account(directory)],
            "replicas": [one.configured for one in replicas],
            "wait_replicas": 0,
            "health_interval": 0.05,
            "verdict_grace": 0.3,
            "poll_seconds": 0.02,
            "quiet_seconds": 0.5,
            "gone_seconds": 0.1,
            "lease_seconds": 1.0,
            "post_timeout": 1.0,
            "pause_seconds": 0.02,
            "pause_max_seconds": 0.1,
            "redis_timeout": 0.5,
        } | settings
        self.write()

    def write(self):
        self.config_file.write_text(json.dumps(self.config))

    def command(self, *words):
        """``openclaw-ingress`` with some words: (exit status, standard output, standard error)."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = cli.main(["--config", str(self.config_file), *words])
            except SystemExit as end:
                code = end.code
        return code, out.getvalue(), err.getvalue()

    def start(self):
        call = [sys.executable, "-B", "-m", "openclaw_ingress", "--config", str(self.config_file), "serve"]
        with self.log_file.open("a") as log:
            self.process = subprocess.Popen(call, env={**os.environ, "PYTHONPATH": str(PACKAGE)}, stdout=log, stderr=log)
        return self

    def ready(self):
        until(self._answers, 30)
        return self

    def _answers(self):
        assert self.process.poll() is None, self.log()
        with contextlib.suppress(OSError):
            return self.ask("GET", "/health")[0] in (200, 503)
        return False

    def stop(self, number=signal.SIGTERM):
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(number)
        return self.process.wait(30) if self.process else None

    def log(self):
        return self.log_file.read_text()

    def ask(self, method, path, body=None, headers=None, port=None):
        """(status, body, headers) of a request at the door."""
        connection = http.client.HTTPConnection("127.0.0.1", port or self.config["port"], timeout=20)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, response.read(), response.headers
        finally:
            connection.close()

    def post(self, document, secret=SECRETS[0], **headers):
        """(status, body, headers) of an update that Telegram sends."""
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        given = {"Content-Type": "application/json", "User-Agent": "Telegram", HEADER: secret, "X-Forwarded-For": "192.0.2.1"} | headers
        return self.ask("POST", "/webhook/telegram", body, given)

    def send(self, *documents):
        """Post them one after the other; each must be acknowledged."""
        for one in documents:
            status, body, _headers = self.post(one)
            assert status == 200, (status, body, self.log())

    def health(self):
        status, body, _headers = self.ask("GET", "/health", port=self.config["status_port"])
        return status, json.loads(body)

    def metric(self, name, **labels):
        """A sample's value, summed over the labels that are not given."""
        text = self.ask("GET", "/metrics", port=self.config["status_port"])[1].decode()
        total = 0.0
        for line in text.splitlines():
            sample, _space, value = line.rpartition(" ")
            if sample.partition("{")[0] == f"openclaw_ingress_{name}" and all(f'{key}="{one}"' in sample for key, one in labels.items()):
                total += float(value)
        return total


def account(directory, **more):
    return {
        "channel": "telegram",
        "account": "default",
        "type": "telegram",
        "path": "/webhook/telegram",
        "secrets": [str(directory / f"secret-{number}") for number in range(len(SECRETS))],
    } | more


def at_once(count, function, items):
    """``function`` of each item, ``count`` at a time; returns the results in order."""
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        return list(pool.map(function, items))


def twice(items):
    """Those that are there more than once."""
    return [one for one, count in collections.Counter(items).items() if count > 1]
