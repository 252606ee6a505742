"""Real PowerDNS servers on loopback."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import dns.exception
import dns.message
import dns.query
import jinja2

from tests.ports import free_port

ROOT = pathlib.Path(__file__).resolve().parents[4]
SECRET = "dGhlIHNlY3JldCBvZiB0aGUga2V5IGZvciB0ZXN0cw=="
ZONE = "claw.example.org"


def until(condition, seconds=15):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not seen within {seconds} s"
        time.sleep(0.02)  # between two looks
    return value


def ask(port, name=ZONE, kind="A"):
    """The answer of one server; None when it gives none."""
    try:
        return dns.query.udp(dns.message.make_query(name, kind), "127.0.0.1", port=port, timeout=1)
    except (dns.exception.Timeout, OSError):
        return None


def addresses(port, count, name=ZONE):
    """What so many questions are answered with, each with one address."""
    return [ask(port, name).answer[0][0].to_text() for _question in range(count)]


class PowerDns:
    """One server, configured as the role does it; ``database`` is made by the module powerdns_zone."""

    def __init__(self, directory, zone=ZONE, secret=SECRET, **settings):
        self.port, self.directory, self.process, self.zone = free_port(), pathlib.Path(directory), None, zone
        self.database = self.directory / "pdns.sqlite3"
        self.directory.mkdir(exist_ok=True)
        self.make(secret)
        text = (ROOT / "roles/dns/templates/pdns.conf.j2").read_text()
        values = {"_dns_database": self.database, "_dns_node": {"address": "127.0.0.1", "port": self.port}, "dns_update_from": ["127.0.0.0/8"]}
        text = jinja2.Template(text).render(values) + f"\nsocket-dir={self.directory}\n"
        text += "".join(f"{key.replace('_', '-')}={value}\n" for key, value in settings.items())
        (self.directory / "pdns.conf").write_text(text)

    def make(self, secret):
        arguments = {"database": str(self.database), "zone": self.zone, "nameserver": f"ns1.{self.zone}", "key_name": "openclaw", "key_secret": secret}
        program = (
            "import json, sys\n"
            "from ansible.module_utils.testing import patch_module_args\n"
            "from ansible_collections.openclaw.ha.plugins.modules import powerdns_zone\n"
            "with patch_module_args(json.load(sys.stdin)):\n    powerdns_zone.main()\n"
        )
        environment = os.environ | {"PYTHONPATH": str(ROOT / ".collections")}
        done = subprocess.run(
            [sys.executable, "-c", program], input=json.dumps(arguments), env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    @property
    def row(self):
        return {"host": self.directory.name, "address": "127.0.0.1", "port": self.port}

    def start(self):
        program = shutil.which("pdns_server", path="/usr/sbin:/usr/bin")
        assert program, "pdns_server is needed by this test: run lab/bootstrap"
        with open(self.directory / "log", "a", encoding="utf-8") as log:
            command = [program, f"--config-dir={self.directory}", "--guardian=no", "--daemon=no", "--disable-syslog", "--write-pid=no"]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        until(lambda: self.process.poll() is not None or ask(self.port, self.zone, "SOA"))
        assert self.process.poll() is None, (self.directory / "log").read_text()
        return self

    def stop(self):
        if self.process:
            self.process.terminate()
            self.process.wait(20)
            self.process = None
