"""Tests against a running lab cluster: the one of the Molecule scenario, or $CLUSTER, or the demo of ``make up``."""

import os
import pathlib
import shlex
import time

import pytest
import requests
import testinfra

ROOT = pathlib.Path(__file__).resolve().parents[2]
from plugins.module_utils.redis_access import passwords

NAME = os.environ.get("MOLECULE_SCENARIO_NAME") or os.environ.get("CLUSTER") or "demo"
#: Where a host of Redis has its certificate, as options of redis-cli.
TLS_FILES = "--tls " + " ".join(f"--{option} /etc/redis/openclaw/tls/{file}.pem" for option, file in {"cacert": "ca", "cert": "cert", "key": "key"}.items())
CHANNELS = ("openclaw-ingress", "openclaw-owner")
#: Units whose journal is worth reading when a test fails.
JOURNALS = ("openclaw-gateway@*", "openclaw-agent*", *CHANNELS, "redis-server", "redis-sentinel", "haproxy", "nginx", "keepalived", "ollama")


class Cluster:
    """A running cluster: addresses and the token from its ``env`` file, and a way to talk to it."""

    def __init__(self, name):
        self.name = name
        self.directory = ROOT / ".lab" if name == "demo" else ROOT / ".lab" / name
        self.secrets = {path.name: path.read_text().strip() for path in (ROOT / ".lab" / name / "secrets").iterdir()}
        self.passwords = {kind: passwords(self.secrets[f"{kind}_password"], kind) for kind in ("redis", "sentinel")}
        self.secrets |= {f"{kind} {user}": one for kind, users in self.passwords.items() for user, one in users.items()}
        lines = (self.directory / "env").read_text().splitlines()
        env = {key: shlex.split(value)[0] for key, value in (line.split("=", 1) for line in lines)}
        self.url, self.token, self.llm_url = env["OPENCLAW_URL"], env["OPENCLAW_TOKEN"], env["LLM_DOUBLE_URL"]
        self.containers = env["OPENCLAW_HOSTS"].split()
        self.replicas = env["OPENCLAW_REPLICAS"].split()
        authority = ROOT / ".lab" / name / "authority"
        self.tls = authority.exists()
        if self.tls:
            # A line out of its middle, which is in no other file.
            self.secrets["authority's key"] = (authority / "ca.key").read_text().splitlines()[1]

    def say(self, message, user, via=None, channel="web", timeout=120, **headers):
        """One turn through the balancer, or straight to ``via`` (address:port); returns the response."""
        base = self.url if via is None else f"http://{via}"
        return requests.post(
            f"{base}/api/v1/message",
            json={"channel": channel, "user_id": user, "message": message},
            headers={"Authorization": f"Bearer {self.token}", **headers},
            timeout=timeout,
        )

    def reply(self, *arguments, **options):
        """Like :meth:`say`, for turns that must be answered; returns the decoded answer."""
        response = self.say(*arguments, **options)
        assert response.status_code == 200, f"{response.status_code}: {response.text[:500]}"
        return response.json()

    def cli(self, kind, node, user="admin", password=None, tls=TLS_FILES):
        """A shell command that leads redis-cli into a server; for a cluster without TLS, ``tls`` is left out.

        ``password``: another one than the user's own; ``tls``: options with the files to show, as they are called where this runs
        """
        secret = self.passwords[kind][user] if password is None else password
        options = tls if self.tls else ""
        return f"REDISCLI_AUTH={shlex.quote(secret)} redis-cli --no-auth-warning --user {user} -h {node['address']} -p {node['port']} {options}"

    def shown(self, match):
        """User messages of each model call whose conversation contains ``match``, oldest call first."""
        answer = requests.get(f"{self.llm_url}/requests", params={"match": match}, timeout=10)
        return [call["user_messages"] for call in answer.json()]

    def behave(self, **behaviour):
        """Tell the LLM double how to behave, on its control port: in the mode ``refuse`` the other one is closed."""
        host, port = self.llm_url.rsplit(":", 1)
        requests.post(f"{host}:{int(port) + 1}/behaviour", json=behaviour, timeout=10).raise_for_status()


@pytest.fixture(scope="session")
def cluster():
    return Cluster(NAME)


@pytest.fixture(scope="session")
def hosts(cluster):
    """The cluster's hosts by their inventory name."""
    prefix = f"openclaw-lab-{cluster.name.replace('_', '-')}-"
    return {name.removeprefix(prefix): testinfra.get_host(f"docker://{name}") for name in cluster.containers}


@pytest.fixture(scope="session")
def topology(cluster):
    """The topology that the roles worked from."""
    from lab.cluster import Cluster as LabCluster
    from lab.demo import topology as build

    return build(LabCluster(cluster.name))


@pytest.fixture
def user(request):
    """A conversation of this test alone."""
    return f"{request.node.name.split('[')[0]}-{time.time_ns()}"


@pytest.fixture
def llm(cluster):
    """The LLM double, well-behaved again afterwards."""
    yield cluster
    cluster.behave(mode="ok")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.when == "call" and report.failed and "hosts" in item.fixturenames:
        for name, host in item.funcargs["hosts"].items():
            units = " ".join(f"--unit={shlex.quote(unit)}" for unit in JOURNALS)
            journal = host.run(f"journalctl {units} --no-pager --lines=25 --output=short-precise")
            report.sections.append((f"journal of {name}", journal.stdout))
    return report
