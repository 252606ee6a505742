"""A real HAProxy or nginx with the configuration that the role renders, in front of stand-ins for replicas."""

from __future__ import annotations

import base64
import contextlib
import datetime
import hashlib
import http.client
import http.server
import importlib.util
import ipaddress
import json
import os
import pathlib
import signal
import socket
import socketserver
import ssl
import subprocess
import threading
import time
import types
import uuid

from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ansible_collections.openclaw.ha.plugins.module_utils import nginx_upstream
from ansible_collections.openclaw.ha.plugins.module_utils.topology import build
from tests.ports import free_port

ROLE = pathlib.Path(__file__).resolve().parents[3] / "roles" / "balancer"
STARTED = (200, {"ok": True, "status": "started"})
DRAINING = (503, {"ok": False, "status": "draining"})
#: Where balancers ask a replica, an ingress and each other. One that asks a port whose owner was closed by its test may ask anybody.
PROBES = ("/startupz", "/health", "/balancer-health")


# ---- rendering


def render(topology, host="node1", template="haproxy.cfg.j2", **variables):
    """The text of a template on ``host``, from the role's own defaults and variables."""
    loader = DataLoader()
    known = {"topology_cluster": topology, "inventory_hostname": host, "ansible_managed": "Ansible managed"}
    for source in ("defaults/main.yml", "vars/main.yml"):
        known |= loader.load_from_file(str(ROLE / source), trusted_as_template=True)
    text = trust_as_template((ROLE / "templates" / template).read_text())
    return str(Templar(loader=loader, variables=known | variables).template(text)) + "\n"


def cluster(replicas=3, datacenters=("main",)):
    """A topology with one balancer and some gateway replicas in each datacenter."""
    hosts = {}
    for number, datacenter in enumerate(datacenters, start=1):
        hosts[f"node{number}"] = {
            "ansible_host": f"198.18.0.{number}",
            "topology_datacenter": datacenter,
            "gateway_replicas": replicas,
        }
    return build({"openclaw_balancers": list(hosts), "openclaw_gateways": list(hosts)}, hosts)


def servers(config):
    return [line.split()[1:3] for line in config.splitlines() if line.split()[:1] == ["server"]]


# ---- backends that misbehave


class Backend:
    """A replica's stand-in.

    ``probe`` is its answer to PROBES. ``hurt`` is called with the id of each other request and says what becomes of
    it: "answer", "drop" (it is read, then the connection is closed), "silence" or a status.
    """

    #: What goes with each of its answers.
    headers = {}

    def __init__(self, name):
        self.name = name
        self.probe = STARTED
        self.hurt = lambda _identity: "answer"
        self.received = []
        self.bodies = []
        self.release = threading.Event()
        backend = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_arguments):
                pass

            def do_GET(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.headers.get("Transfer-Encoding") == "chunked":
                    while size := int(self.rfile.readline(), 16):
                        body += self.rfile.read(size)
                        self.rfile.readline()
                    self.rfile.readline()
                if self.path in PROBES:
                    if backend.probe == "silence":
                        backend.release.wait(20)
                    return self.send(*backend.probe)
                identity = self.headers.get("X-Test", "")
                backend.received.append((identity, self.headers.items()))
                backend.bodies.append(len(body))
                if self.path == "/held":
                    backend.release.wait(20)
                if self.path == "/stream":
                    return self.stream()
                if self.headers.get("Upgrade", "").lower() == "websocket":
                    return self.echo()
                fate = backend.hurt(identity)
                if fate == "silence":
                    backend.release.wait(20)
                    fate = "drop"
                if fate == "drop":
                    self.close_connection = True
                    return None
                return self.send(200 if fate == "answer" else fate, {"from": backend.name})

            do_POST = do_DELETE = do_PUT = do_PATCH = do_GET

            def stream(self):
                """Server-sent events: the first at once, the second when the test says so."""
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                for event in (b"data: 1\n\n", b"data: 2\n\n"):
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
                    if event.endswith(b"1\n\n"):
                        backend.release.wait(20)
                self.wfile.write(b"0\r\n\r\n")

            def echo(self):
                """A WebSocket that says back what it is told, byte for byte."""
                key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
                self.send_response(101)
                self.send_header("Upgrade", "websocket")
                self.send_header("Connection", "Upgrade")
                self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
                self.end_headers()
                while data := self.rfile.read1(1000):
                    self.wfile.write(data)
                self.close_connection = True

            def send(self, status, body):
                raw = body if isinstance(body, bytes) else json.dumps(body, separators=(",", ":")).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(raw)))
                for header in backend.headers.items():
                    self.send_header(*header)
                self.end_headers()
                self.wfile.write(raw)

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            # As Node. With the library's 5, a burst on a busy machine is refused, and the balancer goes elsewhere.
            request_queue_size = 511

            def get_request(self):
                connection, address = super().get_request()
                backend.connections.append(connection)
                return connection, address

            def handle_error(self, *_arguments):
                """A balancer ends connections as it likes."""

        self.connections = []
        self.server = Server(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self):
        if self.server:
            self.release.set()
            self.server.shutdown()
            self.server.server_close()
            self.server = None
            for connection in self.connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


class Ingress(Backend):
    """An ingress's stand-in: the door of ``openclaw_ingress``, which says when to come again."""

    headers = {"Retry-After": "5"}

    def entry(self, datacenter="main"):
        """What the topology says of it."""
        return {"host": self.name, "address": "127.0.0.1", "port": self.port, "status_port": 1, "datacenter": datacenter}


def until(condition, seconds=10):
    """Poll until ``condition()`` is true; returns its value, or fails at the deadline."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.02)  # between two looks
    return value


class Agent:
    """The stand-in of a replica's agent: one line to whoever asks, then the end."""

    def __init__(self, line=b"up 100%\n"):
        self.line = line
        self.asked = 0
        agent = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self):
                agent.asked += 1
                self.request.sendall(agent.line)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            allow_reuse_address = True

        self.server = Server(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


class Balancer:
    """A balancer with the rendered configuration, moved into a directory of the test, in front of ``backends``.

    ``agents`` are those of the backends, where there are any. ``tls`` makes it speak TLS on ``tls_port``. Of the variables, some are the
    topology's, and ``replaced`` says what in the configuration is to be something else for a test.
    """

    template = ""

    def __init__(self, program, directory, backends, agents=(), tls=False, **variables):
        self.program = program
        self.directory = directory
        self.backends = backends
        self.agents = agents
        self.port, self.status_port = free_port(), free_port()
        self.tls_port = free_port() if tls else None
        self.variables = {
            "balancer_metrics_port": self.status_port,
            "balancer_slowstart": 0,
            "_balancer_directory": str(directory),
        } | variables
        self.config = directory / self.template.removesuffix(".j2")
        self.write({backend.name: backend.port for backend in backends})
        self.start()

    def replicas(self, ports):
        replicas = [{"id": name, "address": "127.0.0.1", "port": port, "datacenter": "main"} for name, port in ports.items()]
        for replica, agent in zip(replicas, self.agents, strict=False):
            replica["check_port"] = agent.port
        return replicas

    def write(self, ports):
        node = {"host": "node1", "address": "127.0.0.1", "port": self.port, "tls_port": self.tls_port, "vip": None, "datacenter": "main"}
        topology = {"balancers": [node, *self.variables.get("neighbours", [])], "replicas": self.replicas(ports)}
        if "elsewhere" in self.variables:
            node["datacenters_port"] = self.variables["datacenters_port"]
            topology["sites"] = {"main": {"balancers": [node]}, "west": {"balancers": self.variables["elsewhere"]}}
        topology |= {name: self.variables[name] for name in ("ingresses", "webhooks") if name in self.variables}
        text = render(topology, template=self.template, **self.variables)
        for old, new in (self.moved() | self.variables.get("replaced", {})).items():
            assert text.count(old) >= 1, f"{old!r} is not in the configuration"
            text = text.replace(old, new)
        self.config.write_text(text)

    def popen(self, *arguments):
        with (self.directory / "log").open("w") as log:
            self.process = subprocess.Popen([self.program, *arguments], stdout=log, stderr=subprocess.STDOUT)

    def log(self):
        return (self.directory / "log").read_text()

    def connect(self, tls=False, source=None, alpn=("http/1.1",), name="test.example"):
        """A connection of its own, trusting no certificate but those of the test."""
        port = self.tls_port if tls else self.port
        connection = socket.create_connection(("127.0.0.1", port), timeout=15, source_address=(source, 0) if source else None)
        if not tls:
            return connection
        context = ssl.create_default_context(cafile=str(self.directory / "trusted.pem"))
        context.check_hostname = False
        context.set_alpn_protocols(alpn)
        return context.wrap_socket(connection, server_hostname=name)

    def ask(self, method, path="/x", headers=(), body="", port=None, tls=False, source=None):
        """One request on a connection of its own, in one piece; returns status, body and headers."""
        head = {"Host": "test", "Content-Length": len(body), "Connection": "close"} | dict(headers)
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in head.items()), "", body]
        with socket.create_connection(("127.0.0.1", port), timeout=15) if port else self.connect(tls, source) as client:
            # What is refused may be refused before all of it is sent.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                client.sendall("\r\n".join(lines).encode())
            return answer(client, method)

    def close(self):
        for item in (*self.backends, *self.agents):
            item.close()
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(5)


def chunked(running, sizes, headers="", path="/x"):
    """The status of the answer to a POST that does not tell the length of its body."""
    with running.connect() as client:
        client.sendall(f"POST {path} HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n{headers}\r\n".encode())
        body = b"".join(b"%x\r\n%s\r\n" % (size, b"x" * size) for size in sizes)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            client.sendall(body + b"0\r\n\r\n")
        return answer(client).status


def answer(client, method="GET"):
    """What comes as an answer on a connection."""
    response = http.client.HTTPResponse(client, method=method)
    response.begin()
    return types.SimpleNamespace(status=response.status, body=response.read(), headers=response.headers)


class HAProxy(Balancer):
    template = "haproxy.cfg.j2"

    def moved(self):
        return {
            "chroot /var/lib/haproxy\n": "\n",
            "    user haproxy\n": "\n",
            "    group haproxy\n": "\n",
            "/run/haproxy/admin.sock user root group root": f"{self.directory}/socket",
            "/var/lib/haproxy/server-state": f"{self.directory}/state",
        }

    def start(self):
        save_state().main(str(self.config), "ask", f"{self.directory}/state")
        self.popen("-W", "-f", str(self.config))
        until(lambda: self.alive() and self.hears() and self.states())

    def hears(self):
        """Whether the master waits for signals: while it loads, a reload is not heard."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        caught = int(status.split("SigCgt:")[1].split()[0], 16)
        return caught >> (signal.SIGUSR2 - 1) & 1

    def ready(self):
        """Wait until every server has been checked at least once, and is up."""
        until(lambda: set(self.states().values()) == {"UP"} and self.checked())
        return self

    def alive(self):
        assert self.process.poll() is None, self.log()
        return (self.directory / "socket").exists()

    def command(self, text):
        with contextlib.suppress(ConnectionError, FileNotFoundError), socket.socket(socket.AF_UNIX) as connection:
            connection.connect(f"{self.directory}/socket")
            connection.sendall(f"{text}\n".encode())
            return b"".join(iter(lambda: connection.recv(65536), b"")).decode()
        return ""

    def rows(self, backend="gateways"):
        """What ``show stat`` says of each server, by name."""
        lines = [line.split(",") for line in self.command("show stat").splitlines()]
        return {line[1]: dict(zip(lines[0], line)) for line in lines if line[0] == backend and line[1] not in ("FRONTEND", "BACKEND")}

    def states(self, backend="gateways"):
        return {name: row["status"].split()[0] for name, row in self.rows(backend).items()}

    def checked(self):
        """Whether every server has been checked at least once."""
        return all(row["check_status"].startswith("L7") for row in self.rows().values())

    def reload(self):
        """Reload as the unit does: keep the states, then signal the master."""
        before = self.command("show info")
        save_state().main(str(self.config), f"{self.directory}/socket", f"{self.directory}/state")
        self.process.send_signal(signal.SIGUSR2)

        def pid(info):
            return [line for line in info.splitlines() if line.startswith("Pid:")]

        until(lambda: (now := pid(self.command("show info"))) and now != pid(before) and self.hears() and self.states())


class Nginx(Balancer):
    template = "nginx.conf.j2"

    def moved(self):
        directory = self.directory
        return {
            "user www-data;\n": "user root;\n" if os.geteuid() == 0 else "",
            "worker_processes auto;": "worker_processes 2;",
            "pid /run/nginx.pid;": f"pid {directory}/pid;",
            "error_log syslog:server=unix:/dev/log,tag=nginx,nohostname error;": f"error_log {directory}/error error;",
            "access_log syslog:server=unix:/dev/log,tag=nginx,nohostname openclaw;": f"access_log {directory}/access openclaw;"
            + "".join(f" {kind}_temp_path {directory}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")),
            "/etc/nginx/openclaw/": f"{directory}/",
        }

    def write(self, ports, drained=()):
        super().write(ports)
        (self.directory / "upstream.conf").write_text(nginx_upstream.render(self.replicas(ports), drained))

    def start(self):
        self.popen("-p", str(self.directory), "-c", str(self.config), "-g", "daemon off;")
        until(lambda: self.alive() and self.ask("GET", "/nginx-health", port=self.status_port).status == 200)

    def alive(self):
        assert self.process.poll() is None, self.log()
        return (self.directory / "pid").exists() and (self.directory / "pid").read_text().strip() and self.workers()

    def ready(self):
        return self

    def workers(self):
        """The workers that take requests."""
        pid = self.process.pid
        children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        found = set()
        for child in children:
            with contextlib.suppress(OSError):
                line = pathlib.Path(f"/proc/{child}/cmdline").read_text()
                if "worker process" in line and "shutting" not in line:
                    found.add(child)
        return found

    def reload(self):
        before = self.workers()
        self.process.send_signal(signal.SIGHUP)
        until(lambda: len(self.workers()) == 2 and not self.workers() & before)


def save_state():
    """The role's script as a module."""
    spec = importlib.util.spec_from_file_location("save_state", ROLE / "files" / "save_state.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---- certificates


def authority():
    """Key and certificate of an authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    return key, _certificate(f"authority {uuid.uuid4()}", key.public_key(), key, None, [], 365)


def certificate(directory, name, names, issuer=None, days=30, key=None):
    """Write ``name``.crt and ``name``.key, for DNS names and addresses; trusted.pem takes what a client must trust."""
    issuer = issuer or authority()
    key = key or ec.generate_private_key(ec.SECP256R1())
    made = _certificate(name, key.public_key(), issuer[0], issuer[1].subject, names, days)
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (directory / f"{name}.crt").write_bytes(made.public_bytes(pem))
    (directory / f"{name}.key").write_bytes(private)
    with (directory / "trusted.pem").open("ab") as trusted:
        trusted.write(issuer[1].public_bytes(pem))
    return directory / f"{name}.crt"


def _certificate(name, public, key, issuer, names, days):
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer or subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=60))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
    )
    if names:
        others = [x509.IPAddress(ipaddress.ip_address(one)) if one[0].isdigit() else x509.DNSName(one) for one in names]
        builder = builder.add_extension(x509.SubjectAlternativeName(others), critical=False)
    return builder.sign(key, hashes.SHA256())
