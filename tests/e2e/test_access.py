"""Redis and Sentinel, seen from a host that is in none of the groups: the one of the doubles."""

import pytest
import testinfra

from lab.cluster import Cluster as LabCluster
from lab.shell import run

PREFIX = "/tmp/outside"
TLS = f"--tls --cacert {PREFIX}/ca.pem --cert {PREFIX}/client.pem --key {PREFIX}/client.key"
STRANGER = f"--tls --cacert {PREFIX}/ca.pem --cert {PREFIX}/stranger.pem --key {PREFIX}/stranger.key"
MAKE_STRANGER = (
    f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -days 1 -subj /CN=stranger "
    f"-keyout {PREFIX}/stranger.key -out {PREFIX}/stranger.pem 2>/dev/null"
)
#: How a connection ends that the server does not want.
REFUSALS = ("closed the connection", "I/O error", "Connection reset", "alert")
#: What each user must not do, although another one may.
FORBIDDEN = {
    "redis": {
        "app": ["get elsewhere", "keys *", "flushall", "config get *", "acl list", "replicaof no one", "publish oc:a b", "shutdown nosave"],
        "replica": ["get oc:conv:a:b", "info", "config get masterauth", "flushall"],
        "sentinel": ["get oc:conv:a:b", "config get masterauth", "config set maxmemory 1", "flushall", "publish oc:a b"],
        "exporter": ["get oc:conv:a:b", "config set maxmemory 1", "flushall", "acl list"],
        "backup": ["get oc:conv:a:b", "config set maxmemory 1", "flushall"],
    },
    "sentinel": {
        "client": ["sentinel failover openclaw", "sentinel set openclaw quorum 1", "sentinel remove openclaw", "acl list", "shutdown nosave"],
        "sentinel": ["sentinel masters", "sentinel failover openclaw", "sentinel remove openclaw"],
    },
}
ALLOWED = {
    "redis": {"app": "lrange oc:conv:nobody:none 0 -1", "exporter": "info server", "backup": "lastsave", "sentinel": "role", "replica": "ping"},
    "sentinel": {"client": "sentinel get-master-addr-by-name openclaw", "sentinel": "ping"},
}


@pytest.fixture(scope="module")
def outside(cluster):
    """A host outside, with a certificate of the cluster's authority and one of its own making."""
    container = f"openclaw-lab-{cluster.name.replace('_', '-')}-doubles"
    host = testinfra.get_host(f"docker://{container}")
    host.check_output(f"mkdir -p {PREFIX} && {MAKE_STRANGER}")
    for path in LabCluster(cluster.name).client_certificate().values():
        run("docker", "cp", path, f"{container}:{PREFIX}/")
    yield host
    host.check_output(f"rm -r {PREFIX}")


@pytest.fixture(params=["redis", "sentinel"])
def servers(request, topology):
    """A kind, and its servers."""
    return request.param, topology["redis" if request.param == "redis" else "sentinels"]


def answers(host, commands):
    """What each command says, in order; one call for all of them."""
    mark = "=== the next one"
    return host.run("; ".join(f"{{ {command}; }} 2>&1; echo '{mark}'" for command in commands)).stdout.split(f"{mark}\n")[:-1]


def test_without_a_credential_nobody_gets_in(outside, cluster, servers):
    for node in servers[1]:
        said = outside.run(f"redis-cli -h {node['address']} -p {node['port']} {TLS if cluster.tls else ''} ping").stdout
        assert said.startswith("NOAUTH"), said


def test_with_a_wrong_credential_or_that_of_another_user_nobody_gets_in(outside, cluster, servers):
    kind, nodes = servers
    other = {"redis": "sentinel", "sentinel": "redis"}[kind]
    wrong = {"wrong", cluster.secrets[f"{kind}_password"], cluster.passwords[other]["admin"], *cluster.passwords[kind].values()}
    tries = [(user, password) for user in ("default", *cluster.passwords[kind]) for password in wrong if cluster.passwords[kind].get(user) != password]
    for node in nodes:
        said = answers(outside, [f"{cluster.cli(kind, node, user, password, tls=TLS)} ping" for user, password in tries])
        for (user, _password), answer in zip(tries, said, strict=True):
            assert "WRONGPASS" in answer and "PONG" not in answer, f"{kind} on {node['host']}, {user}: {answer}"


def test_each_user_may_do_its_own_work_and_no_other(outside, cluster, servers):
    kind, nodes = servers
    tries = [(user, command, True) for user, command in ALLOWED[kind].items()]
    tries += [(user, command, False) for user, commands in FORBIDDEN[kind].items() for command in commands]
    for node in nodes:
        said = answers(outside, [f"{cluster.cli(kind, node, user, tls=TLS)} {command.replace('*', chr(39) + '*' + chr(39))}" for user, command, _may in tries])
        for (user, command, may), answer in zip(tries, said, strict=True):
            assert answer.startswith("NOPERM") is not may, f"{kind} on {node['host']}, {user}: {command}: {answer}"
            assert not may or not answer.startswith(("ERR", "WRONGPASS", "NOAUTH", "Could not")), f"{user}: {command}: {answer}"


def test_without_a_certificate_of_the_authority_there_is_no_connection(outside, cluster, servers):
    kind, nodes = servers
    if not cluster.tls:
        # Without TLS the ports speak plainly, and a client that wants TLS gets none.
        said = outside.run(f"redis-cli -h {nodes[0]['address']} -p {nodes[0]['port']} {STRANGER} ping")
        assert said.rc != 0 and "PONG" not in said.stdout
        return
    for node in nodes:
        for options in ("", f"--tls --cacert {PREFIX}/ca.pem", STRANGER):
            said = outside.run(f"timeout 5 env {cluster.cli(kind, node, tls=options)} ping")
            text = said.stdout + said.stderr
            assert said.rc == 1 and any(word in text for word in REFUSALS), f"{kind} {options}: {text}"
        said = outside.run(f"timeout 5 env {cluster.cli(kind, node, tls=TLS.replace('ca.pem', 'stranger.pem'))} ping")
        assert said.rc != 0 and "certificate verify failed" in said.stderr, "a client must notice a server of another authority"
