import pytest

from ansible_collections.openclaw.ha.plugins.module_utils import balancer_server as core
from ansible_collections.openclaw.ha.plugins.module_utils.balancer_server import Server, Step, next_step

STATE = """1
# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight srv_time_since_last_change srv_check_status srv_check_result \
srv_check_health srv_check_state srv_agent_state bk_f_forced_id srv_f_forced_id \
srv_fqdn srv_port srvrecord srv_use_ssl srv_check_port srv_check_addr srv_agent_addr srv_agent_port
4 gateways 1 node1-1 192.0.2.11 2 8 100 100 3 6 3 4 6 0 0 0 - 18789 - 0 0 - - 0
4 gateways 2 node2-1 192.0.2.12 2 0 100 100 3 6 3 4 6 0 0 0 - 18789 - 0 0 - - 0
4 gateways 3 node3-1 192.0.2.13 2 0 100 100 3 6 3 4 6 0 0 0 - 18789 - 0 0 - - 0
5 others 1 node9-1 192.0.2.19 2 0 100 100 3 6 3 4 6 0 0 0 - 18789 - 0 0 - - 0
"""
STAT = """# pxname,svname,qcur,qmax,scur,smax,status,weight,stot,econ,eresp,hrsp_5xx,
openclaw,FRONTEND,,,2,2,OPEN,,9,,,0,
gateways,node1-1,1,1,2,2,DRAIN,100,40,1,2,3,
gateways,node2-1,0,0,0,0,UP 1/2,100,0,0,0,,
gateways,node3-1,0,0,0,0,UP,0,7,0,0,0,
gateways,BACKEND,0,0,1,1,UP,200,47,1,2,3,
others,node9-1,0,0,7,7,UP,100,1,0,0,0,
"""


def test_replicas_as_haproxy_tells_of_them():
    found = core.servers(STAT, STATE, lambda address, port: 1 if (address, port) == ("192.0.2.11", 18789) else 0)
    assert found == {
        "node1-1": Server(state="drained", status="DRAIN", takes=False, sessions=4, older=1, requests=40, errors=6),
        "node2-1": Server(state="ready", status="UP 1/2", takes=True, sessions=0, older=0, requests=0, errors=0),
        # Its agent says 0 %.
        "node3-1": Server(state="ready", status="UP", takes=False, sessions=0, older=0, requests=7, errors=0),
    }


@pytest.mark.parametrize("text", ["", "Can't find backend.\n\n", "1\n"])
def test_no_servers_where_there_is_no_such_backend(text):
    assert core.states(text) == {}


@pytest.mark.parametrize(
    "flags, state",
    [(0, "ready"), (8, "drained"), (0x10, "drained"), (1, "maintenance"), (0x20, "ready"), (9, "maintenance"), (4, "maintenance")],
)
def test_flags_of_a_server(flags, state):
    assert core.set_state(flags) == state


def test_the_process_that_answers():
    assert core.pid("Name: HAProxy\nPid: 4711\nUptime: 0d\n") == 4711
    assert core.pid("") is None


def test_connections_to_a_replica():
    table = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0B0200C0:1F90 0C0200C0:4965 01 00000000:00000000 00:00000000 00000000     0        0 111 1 0 20 4 30 10 -1
   1: 0B0200C0:1F90 0C0200C0:4965 06 00000000:00000000 00:00000000 00000000     0        0 112 1 0 20 4 30 10 -1
   2: 0B0200C0:1F90 0C0200C0:4966 01 00000000:00000000 00:00000000 00000000     0        0 113 1 0 20 4 30 10 -1
   3: 0C0200C0:4965 0B0200C0:1F90 01 00000000:00000000 00:00000000 00000000     0        0 114 1 0 20 4 30 10 -1
"""
    assert core.established(table, "192.0.2.12", 18789) == {"111"}
    assert core.established("", "192.0.2.12", 18789) == set()


def test_a_stranger_is_named_and_so_is_who_there_is():
    assert core.unknown(["node1-1"], ["node1-1"]) == ""
    assert core.unknown(["x", "node1-1"], ["node1-1", "node2-1"]) == "This balancer has no replica x; it has node1-1, node2-1."


def step(state, wanted, waited=0, sessions=0, **more):
    server = Server(state=state, status="L4CON", takes=more.pop("takes", None), sessions=sessions, older=more.pop("older", 0))
    return next_step("r1", server, wanted, waited, more.pop("deadline", 10), **more)


@pytest.mark.parametrize(
    "found, expected",
    [
        (step("ready", "drained"), Step("set", "drained")),
        (step("maintenance", "drained"), Step("set", "drained")),
        (step("drained", "drained", idle=1), Step("wait")),
        (step("drained", "drained", idle=2), Step("done")),
        (step("drained", "drained", waited=9, sessions=1), Step("wait")),
        (step("drained", "drained", waited=10, sessions=1, cut=True), Step("cut")),
        (step("drained", "drained", waited=12, sessions=1, cut=True, cut_at=10), Step("wait")),
        (step("ready", "maintenance"), Step("set", "drained")),
        (step("drained", "maintenance", idle=2), Step("set", "maintenance")),
        (step("maintenance", "maintenance", idle=2), Step("done")),
        (step("maintenance", "maintenance", sessions=1), Step("wait")),
        (step("drained", "ready"), Step("set", "ready")),
        (step("ready", "ready", takes=False), Step("wait")),
        (step("ready", "ready", takes=False, deadline=0), Step("done")),
        (step("ready", "ready", takes=True), Step("done")),
        (step("ready", "ready", takes=None), Step("done")),
    ],
)
def test_the_next_step(found, expected):
    assert found == expected


@pytest.mark.parametrize(
    "found, words",
    [
        (step("drained", "drained", waited=10, sessions=2), ("2 sessions", "after 10 s", "stays drained", "wait longer (deadline) or cut them (cut)")),
        (step("drained", "drained", waited=15, sessions=1, cut=True, cut_at=10), ("1 session ", "could not be cut")),
        (step("drained", "drained", waited=10, sessions=1, older=1, cut=True), ("1 session ", "1 of them", "a reload has left behind")),
        (step("ready", "ready", waited=10, takes=False), ("gets no requests", "it is L4CON")),
    ],
)
def test_what_did_not_come_about_is_said_with_a_way_on(found, words):
    assert found.action == "fail"
    assert all(word in found.text for word in words), found.text
