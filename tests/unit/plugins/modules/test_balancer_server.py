"""balancer_server with the real HAProxy and the real nginx on loopback, streams in flight included."""

import http.client
import http.server
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import threading
import time

import pytest

from ansible_collections.openclaw.ha.plugins.module_utils import nginx_upstream
from ansible_collections.openclaw.ha.plugins.modules import balancer_server
from tests.ports import free_port

HAPROXY = """
global
    stats socket {directory}/socket mode 600 level admin expose-fd listeners
    stats timeout 5s
    server-state-file {directory}/state
defaults
    mode http
    timeout connect 2s
    timeout client 30s
    timeout server 30s
    timeout check 5s
    load-server-state-from-file global
frontend openclaw
    bind 127.0.0.1:{port}
    default_backend gateways
backend gateways
    balance roundrobin
    option httpchk GET /check
    default-server check inter 100ms fall 2 rise 1 weight 100
{servers}
"""
NGINX = """
pid {directory}/pid;
error_log {directory}/log;
worker_processes 2;
events {{}}
http {{
    access_log off;
    client_body_temp_path {directory}; proxy_temp_path {directory}; fastcgi_temp_path {directory}; uwsgi_temp_path {directory}; scgi_temp_path {directory};
    include {directory}/upstream.conf;
    server {{
        listen 127.0.0.1:{port};
        proxy_buffering off;
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        location / {{ proxy_pass http://gateways; }}
    }}
}}
"""


def until(condition, seconds=15):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "not seen in time"
        time.sleep(0.02)  # between two looks
    return value


class Replica:
    """Answers at once, but a stream goes on until :meth:`finish`."""

    def __init__(self, name):
        self.name, self.well, self.open, self.release = name, True, 0, threading.Event()
        replica = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_arguments):
                pass

            def do_GET(self):
                if self.path == "/stream":
                    return self.stream()
                status = 200 if replica.well or self.path != "/check" else 503
                return self.answer(status, replica.name.encode())

            def answer(self, status, body):
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def stream(self):
                self.send_response(200)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                self.wfile.write(b"5\r\nbegin\r\n")
                replica.open += 1
                replica.release.wait(30)
                self.wfile.write(b"3\r\nend\r\n0\r\n\r\n")

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_arguments):
                """A balancer ends connections as it likes."""

        self.server = Server(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def finish(self):
        self.release.set()

    def close(self):
        self.finish()
        self.server.shutdown()
        self.server.server_close()


class Stream(threading.Thread):
    """One request for a stream; ``result`` is its whole text, or the error that cut it."""

    def __init__(self, port):
        super().__init__(daemon=True)
        self.port, self.result = port, None
        self.start()

    def run(self):
        try:
            client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
            client.request("GET", "/stream")
            self.result = client.getresponse().read().decode()
        except (OSError, http.client.HTTPException) as error:
            self.result = error


class Rig:
    """A balancer in front of two replicas; ``arguments`` lead the module to it."""

    def __init__(self, directory):
        self.directory, self.port = directory, free_port()
        self.replicas = {name: Replica(name) for name in ("r1", "r2")}
        self.process = None

    def get(self):
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        client.request("GET", "/x")
        answer = client.getresponse()
        return answer.read().decode() if answer.status == 200 else answer.status

    def stream(self):
        """A stream in flight; returns it and the name of its replica."""
        before = {name: replica.open for name, replica in self.replicas.items()}
        found = Stream(self.port)
        return found, until(lambda: next((name for name, replica in self.replicas.items() if replica.open > before[name]), None))

    def close(self):
        for replica in self.replicas.values():
            replica.close()
        if self.process:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)


class Haproxy(Rig):
    def __init__(self, directory):
        super().__init__(directory)
        self.arguments = {"socket": f"{directory}/socket", "interval": 0.05}
        servers = "".join(f"    server {name} 127.0.0.1:{replica.port}\n" for name, replica in self.replicas.items())
        (directory / "config").write_text(HAPROXY.format(directory=directory, port=self.port, servers=servers))
        (directory / "state").write_text("1\n")
        program = shutil.which("haproxy", path="/usr/sbin:/usr/bin")
        assert program, "haproxy is needed by this test: run lab/bootstrap"
        with (directory / "log").open("w") as log:
            self.process = subprocess.Popen([program, "-W", "-f", str(directory / "config")], stdout=log, stderr=log)
        until(lambda: (directory / "socket").exists() and self.get() in self.replicas)

    def info(self):
        return balancer_server.Haproxy(self.arguments["socket"]).ask("show info")

    def hears(self):
        """Whether the master waits for signals: while it loads, a reload is not heard."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("SigCgt:")[1].split()[0], 16) >> (signal.SIGUSR2 - 1) & 1

    def reload(self):
        until(self.hears)
        engine = balancer_server.Haproxy(self.arguments["socket"])
        (self.directory / "state").write_text(engine.ask("show servers state"))
        before = balancer_server.pid(self.info())
        self.process.send_signal(signal.SIGUSR2)

        def is_another():
            try:
                return balancer_server.pid(self.info()) not in (None, before)
            except balancer_server.BalancerError:
                return False

        until(is_another)


class Nginx(Rig):
    def __init__(self, directory):
        super().__init__(directory)
        self.servers = [{"id": name, "address": "127.0.0.1", "port": replica.port} for name, replica in self.replicas.items()]
        self.arguments = {
            "engine": "nginx",
            "servers": self.servers,
            "directory": str(directory),
            "config": str(directory / "config"),
            "pid_file": str(directory / "pid"),
            "interval": 0.05,
        }
        (directory / "config").write_text(NGINX.format(directory=directory, port=self.port))
        self.upstream = directory / "upstream.conf"
        self.upstream.write_text(nginx_upstream.render(self.servers, []))
        (directory / "drained").write_text("")
        directory.chmod(0o755)
        program = shutil.which("nginx", path="/usr/sbin:/usr/bin")
        assert program, "nginx is needed by this test: run lab/bootstrap"
        self.process = subprocess.Popen([program, "-c", str(directory / "config"), "-g", "daemon off;"])
        until((directory / "pid").exists)
        until(self.listens)

    def listens(self):
        try:
            return self.get() in self.replicas
        except OSError:
            return False


@pytest.fixture(params=[Haproxy, Nginx])
def rig(request, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
    yield from running(request.param, tmp_path)


@pytest.fixture
def haproxy(tmp_path):
    yield from running(Haproxy, tmp_path)


@pytest.fixture
def nginx(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
    yield from running(Nginx, tmp_path)


def running(kind, directory):
    found = kind(directory)
    yield found
    found.close()


@pytest.fixture
def balance(run_module):
    def run(rig, *names, check=False, **options):
        return run_module(balancer_server, check=check, replicas=list(names), **{**rig.arguments, "deadline": 15, **options})

    return run


class Call(threading.Thread):
    """Something done meanwhile, a little later."""

    def __init__(self, seconds, action):
        super().__init__(daemon=True)
        self.seconds, self.action = seconds, action
        self.start()

    def run(self):
        time.sleep(self.seconds)  # the module waits meanwhile
        self.action()


def test_a_drained_replica_gets_nothing_new_and_its_stream_ends_whole(rig, balance):
    stream, name = rig.stream()
    other = next(one for one in rig.replicas if one != name)
    Call(0.5, rig.replicas[name].finish)
    done = balance(rig, name)
    assert not done["failed"], done
    (one,) = done["replicas"]
    assert (one["before"], one["after"], one["sessions_after"], one["cut"]) == ("ready", "drained", 0, 0)
    assert one["sessions_before"] >= 1 and 0.4 < one["seconds"] < 10
    stream.join(10)
    assert stream.result == "beginend"
    assert {rig.get() for _request in range(8)} == {other}
    assert done["diff"] == {"before": f"{name}: ready\n", "after": f"{name}: drained\n"}

    again = balance(rig, name)
    assert not again["changed"] and again["replicas"][0]["before"] == "drained"
    back = balance(rig, name, state="ready")
    assert back["changed"] and not back["failed"]
    until(lambda: name in {rig.get() for _request in range(8)})


def test_what_is_left_after_the_deadline_is_a_failure_and_it_stays_drained(rig, balance):
    _stream, name = rig.stream()
    done = balance(rig, name, deadline=0.5)
    assert done["failed"] and f"{name} still has 1 session on this balancer" in done["msg"], done
    assert done["changed"] and done["replicas"][0]["sessions_after"] == 1
    assert {one["id"]: one["state"] for one in done["servers"]}[name] == "drained"


def test_check_mode_looks_once_and_changes_nothing(rig, balance):
    stream, name = rig.stream()
    done = balance(rig, name, check=True)
    assert done["changed"] and not done["failed"]
    assert done["replicas"][0]["before"] == "ready" and done["replicas"][0]["after"] == "drained"
    assert {one["state"] for one in done["servers"]} == {"ready"}
    rig.replicas[name].finish()
    stream.join(10)
    assert stream.result == "beginend"
    assert until(lambda: {rig.get() for _request in range(8)} == set(rig.replicas))


def test_without_replicas_it_only_looks(rig, balance):
    done = balance(rig)
    assert not done["changed"] and [one["id"] for one in done["servers"]] == ["r1", "r2"]
    # What a canary is judged by; nginx does not count by replica.
    assert [one["requests"] is not None and one["errors"] is not None for one in done["servers"]] == [type(rig).__name__ == "Haproxy"] * 2


def test_a_replica_that_the_balancer_does_not_have_is_named(rig, balance):
    done = balance(rig, "r1", "node9-1")
    assert done["failed"] and done["msg"] == "This balancer has no replica node9-1; it has r1, r2."
    assert {one["state"] for one in balance(rig)["servers"]} == {"ready"}


def test_both_at_once(rig, balance):
    done = balance(rig, "r1", "r2")
    assert [one["after"] for one in done["replicas"]] == ["drained", "drained"] and not done["failed"]
    assert rig.get() in (502, 503)


def test_haproxy_cuts_what_is_left(haproxy, balance):
    stream, name = haproxy.stream()
    done = balance(haproxy, name, deadline=0.3, cut=True)
    assert not done["failed"], done
    assert done["replicas"][0]["cut"] == 1 and done["replicas"][0]["sessions_after"] == 0
    stream.join(10)
    assert isinstance(stream.result, http.client.HTTPException)


def test_maintenance_is_drained_first(haproxy, balance):
    stream, name = haproxy.stream()
    Call(0.5, haproxy.replicas[name].finish)
    done = balance(haproxy, name, state="maintenance")
    assert not done["failed"] and done["replicas"][0]["after"] == "maintenance"
    stream.join(10)
    assert stream.result == "beginend"
    assert {one["id"]: one["status"] for one in done["servers"]}[name] == "MAINT"
    assert not balance(haproxy, name, state="maintenance")["changed"]
    assert balance(haproxy, name, state="drained")["replicas"][0]["before"] == "maintenance"


def test_a_stream_that_a_reload_has_left_behind_counts(haproxy, balance):
    stream, name = haproxy.stream()
    haproxy.reload()
    done = balance(haproxy, name, deadline=0.5, cut=True)
    assert done["failed"] and "in a process that a reload has left behind" in done["msg"], done
    Call(0.3, haproxy.replicas[name].finish)
    assert not balance(haproxy, name)["failed"]
    stream.join(10)
    assert stream.result == "beginend"


def test_ready_waits_for_the_checks_and_says_what_they_say(haproxy, balance):
    balance(haproxy, "r1")
    haproxy.replicas["r1"].well = False
    until(lambda: {one["id"]: one["status"] for one in balance(haproxy)["servers"]}["r1"].startswith("DOWN"))
    done = balance(haproxy, "r1", state="ready", deadline=0.3)
    assert done["failed"] and "gets no requests: after 0.3 s it is DOWN" in done["msg"]
    assert not balance(haproxy, "r1", state="ready", deadline=0)["failed"]
    haproxy.replicas["r1"].well = True
    assert not balance(haproxy, "r1", state="ready")["failed"]


def test_haproxy_that_does_not_run_is_said(haproxy, balance, tmp_path):
    done = balance(haproxy, "r1", socket=str(tmp_path / "nowhere"))
    assert done["failed"] and done["running"] is False and "there is no such socket; HAProxy does not run here" in done["msg"]
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
    done = balance(haproxy, "r1", socket=str(tmp_path / "dead"))
    assert done["failed"] and done["running"] is False and "nobody listens; HAProxy does not run" in done["msg"]


def test_an_haproxy_for_something_else_is_said(haproxy, balance, monkeypatch):
    monkeypatch.setattr(balancer_server, "BACKEND", "others")
    done = balance(haproxy, "r1")
    assert done["failed"] and done["running"] and "no servers in a backend others (Can't find backend.)" in done["msg"]


def test_nginx_cannot_cut(nginx, balance):
    done = balance(nginx, "r1", cut=True)
    assert done["failed"] and "nginx cannot cut the sessions of one replica" in done["msg"]


def test_nginx_goes_back_to_the_old_list_when_it_does_not_take_the_new_one(nginx, balance):
    config = pathlib.Path(nginx.arguments["config"])
    config.write_text(config.read_text().replace("worker_processes 2;", "worker_processes many;"))
    before = nginx.upstream.read_text()
    done = balance(nginx, "r1")
    assert done["failed"] and "nginx would not take the list, so the old one is back" in done["msg"]
    assert nginx.upstream.read_text() == before and (nginx.directory / "drained").read_text() == ""


def test_a_list_that_nginx_has_not_read_yet_is_read(nginx, balance):
    """As after a run that was interrupted just before its reload."""
    (nginx.directory / "drained").write_text("r1\n")
    nginx.upstream.write_text(nginx_upstream.render(nginx.servers, ["r1"]))
    later = time.time() + 60
    os.utime(nginx.upstream, (later, later))
    done = balance(nginx, "r1")
    assert done["changed"] and not done["failed"]
    assert {nginx.get() for _request in range(8)} == {"r2"}


def test_what_is_drained_stays_drained_when_another_one_is(nginx, balance):
    balance(nginx, "r1")
    balance(nginx, "r2")
    assert (nginx.directory / "drained").read_text() == "r1\nr2\n"
    balance(nginx, "r1", state="ready")
    assert (nginx.directory / "drained").read_text() == "r2\n"
    assert {nginx.get() for _request in range(8)} == {"r1"}


def test_what_nginx_needs_to_know_of_a_replica_is_said(nginx, balance):
    done = balance(nginx, "r1", servers=[{"id": "r1"}])
    assert done["failed"] and "each needs id, address and port" in done["msg"]


def test_nginx_that_does_not_run_is_said(nginx, balance, tmp_path):
    done = balance(nginx, "r1", pid_file=str(tmp_path / "nothing"))
    assert done["failed"] and done["running"] is False and "no nginx runs with this number" in done["msg"]
    done = balance(nginx, "r1", directory=str(tmp_path / "nowhere"))
    assert done["failed"] and done["running"] is False and "there is no such directory" in done["msg"]
