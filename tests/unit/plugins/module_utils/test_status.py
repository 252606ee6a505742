import pytest

from ansible_collections.openclaw.ha.plugins.module_utils import status
from ansible_collections.openclaw.ha.plugins.module_utils.topology import build

NAMES = ("node1", "node2")
TOPOLOGY = build(
    {
        "openclaw_balancers": ["node1"],
        "openclaw_gateways": list(NAMES),
        "openclaw_redis": list(NAMES),
        "openclaw_sentinels": ["node1"],
        "openclaw_ollama": ["node2"],
    },
    {name: {"ansible_host": f"192.0.2.1{number}"} for number, name in enumerate(NAMES, 1)},
)
REDIS = {
    "state": "agreed",
    "primary": "192.0.2.11:6379",
    "problems": [],
    "redis": [
        {"host": "node1", "address": "192.0.2.11", "port": 6379, "role": "master", "connected": 1, "offset": 42, "behind": 0},
        {"host": "node2", "address": "192.0.2.12", "port": 6379, "role": "slave", "link": True, "offset": 40, "behind": 2, "lag": 1},
    ],
    "sentinels": [{"host": "node1", "address": "192.0.2.11", "port": 26379, "primary": "192.0.2.11:6379", "quorum_ok": True}],
}


@pytest.fixture
def answers():
    return {
        name: {
            "units": "\n".join("active" for _unit in status.units_of(TOPOLOGY, name)),
            "replicas": {"replicas": [{"id": f"{name}-1", "healthy": True, "seen": "healthy", "version": "2026.9.6"}]},
            "redis": REDIS,
            "verdicts": {"replicas": [{"id": f"{name}-1", "seen": "ok", "verdict": verdict("ok")}]},
            "balancer": {"servers": [seen("node1-1"), seen("node2-1")]} if name == "node1" else {},
        }
        for name in NAMES
    }


def seen(name, state="ready", word="UP", takes=True):
    """A replica as a balancer sees it."""
    return {"id": name, "state": state, "status": word, "takes": takes, "sessions": 0}


def verdict(status, drain=None, **wrong):
    """An agent's verdict, as far as the status reads it."""
    checks = {"disk": True, "gateway": True, "partner": None, **dict.fromkeys(wrong, False)}
    return {"status": status, "checks": checks, "problems": [f"{name}: {text}" for name, text in wrong.items()], "drain": drain}


def test_units_and_roles_of_a_host():
    assert status.units_of(TOPOLOGY, "node1") == [
        "haproxy.service",
        "openclaw-agent.service",
        "openclaw-gateway@1.service",
        "redis-sentinel.service",
        "redis-server.service",
    ]
    assert status.roles_of(TOPOLOGY, "node2") == ["gateway", "ollama", "redis"]


def test_probes_go_to_the_loopback_address():
    assert status.probes_of(TOPOLOGY, "node2") == [
        {"id": "node2-1", "address": "127.0.0.1", "port": 18789, "unit": "openclaw-gateway@1.service"}
    ]


def test_the_verdicts_are_asked_for_by_the_loopback_address():
    assert status.verdicts_of(TOPOLOGY, "node2") == [{"id": "node2-1", "address": "127.0.0.1", "port": 18700, "unit": "openclaw-agent.service"}]


def row(found, start):
    return next(line for line in status.table(found) if line.startswith(start))


def test_a_degraded_replica_is_told_with_what_fails(answers):
    answers["node1"]["verdicts"]["replicas"][0]["verdict"] = verdict("degraded", redis="no connection", clock="3 s off")
    found = status.status(TOPOLOGY, answers)
    assert found["problems"] == ["node1-1: redis: no connection.", "node1-1: clock: 3 s off."]
    assert found["replicas"][0]["verdict"]["failing"] == ["redis", "clock"]
    assert row(found, "node1-1").endswith("  healthy  degraded (redis, clock)")
    assert row(found, "node2-1").endswith("  healthy  ok")


def test_a_drained_replica_is_told_with_who_and_since_when(answers):
    switch = {"since": "2026-11-20T10:00:00+00:00", "by": "ada", "reason": "new disk"}
    answers["node2"]["verdicts"]["replicas"][0]["verdict"] = verdict("draining", switch)
    found = status.status(TOPOLOGY, answers)
    assert found["problems"] == ["node2-1: drained since 2026-11-20T10:00:00+00:00 by ada (new disk)."]
    assert found["replicas"][1]["verdict"] == {"status": "draining", "failing": [], "problems": [], "drain": switch}
    assert row(found, "node2-1").endswith("draining, drained since 2026-11-20T10:00:00+00:00 by ada (new disk)")


def test_an_agent_that_does_not_answer_is_named(answers):
    answers["node1"]["verdicts"]["replicas"][0] = {"id": "node1-1", "seen": "connection refused", "verdict": {}}
    answers["node2"]["verdicts"] = {}
    found = status.status(TOPOLOGY, answers)
    assert found["problems"] == ["node1-1: agent: connection refused."]
    assert [one["verdict"]["status"] for one in found["replicas"]] == ["unknown", "unknown"]


def test_all_is_well(answers):
    found = status.status(TOPOLOGY, answers)
    assert found["ok"] and found["problems"] == []
    lines = status.table(found)
    assert lines[-1] == "Nothing is wrong."
    assert any(line.split() == ["node1", "192.0.2.11:6379", "primary", "1", "replicas", "-", "-", "-"] for line in lines)
    assert any(line.split() == "node2  192.0.2.12:6379  replica  up          2 bytes  1 s ago  -".split() for line in lines)


def test_a_stopped_unit_is_named(answers):
    answers["node1"]["units"] = answers["node1"]["units"].replace("active", "failed", 1)
    assert status.status(TOPOLOGY, answers)["problems"] == ["node1: unit haproxy.service is failed."]


def test_a_silent_host_is_named_and_its_replica_too(answers):
    answers["node2"] = {}
    assert status.status(TOPOLOGY, answers)["problems"] == ["node2: the host does not answer.", "node2-1: not asked."]


def test_a_sick_replica_is_named(answers):
    answers["node1"]["replicas"]["replicas"][0].update(healthy=False, seen="connection refused")
    assert status.status(TOPOLOGY, answers)["problems"] == ["node1-1: connection refused."]


@pytest.mark.parametrize(
    ("server", "cell", "problem"),
    [
        (seen("node2-1", "drained", "DRAIN", False), "node2-1 (drained, DRAIN)", "node2-1: drained on the balancer node1 alone; "),
        (seen("node2-1", word="DOWN", takes=False), "node2-1 (ready, DOWN)", "node2-1: gets no requests from the balancer node1 (ready, DOWN)."),
        (seen("node9-1"), "node2-1 (not in its list)", "node2-1: node1 does not know it; run site.yml."),
        # nginx does not know before it has tried.
        (seen("node2-1", word="listed", takes=None), "-", None),
    ],
)
def test_whom_a_balancer_keeps_requests_from(answers, server, cell, problem):
    answers["node1"]["balancer"] = {"servers": [seen("node1-1"), server]}
    found = status.status(TOPOLOGY, answers)
    (row,) = [line for line in status.table(found) if line.split()[:2] == ["node1", "haproxy"]]
    assert row.split("node1-1", 1)[1].removeprefix(" node2-1").strip() == cell
    assert len(found["problems"]) == bool(problem) and all(one.startswith(problem) for one in found["problems"])


def test_what_its_agent_drains_no_balancer_is_blamed_for(answers):
    switch = {"since": "2026-11-20T20:00:00Z", "by": "root", "reason": "drain.yml"}
    answers["node2"]["verdicts"]["replicas"][0]["verdict"] = verdict("draining", switch)
    answers["node1"]["balancer"] = {"servers": [seen("node1-1"), seen("node2-1", "drained", "DRAIN", False)]}
    (problem,) = status.status(TOPOLOGY, answers)["problems"]
    assert problem.startswith("node2-1: drained since")


def test_a_balancer_that_does_not_answer_is_named(answers):
    answers["node1"]["balancer"] = {"failed": True, "msg": "/run/haproxy/admin.sock: nobody listens."}
    found = status.status(TOPOLOGY, answers)
    assert found["problems"] == ["node1: balancer: /run/haproxy/admin.sock: nobody listens."]
    assert any(line.split() == ["node1", "haproxy", "?", "no", "answer"] for line in status.table(found))


def test_without_an_answer_about_redis_that_is_said(answers):
    for answer in answers.values():
        answer["redis"] = {}
    assert "No Redis host could be asked" in status.status(TOPOLOGY, answers)["problems"][0]


def test_what_does_not_answer_stands_in_the_table_too(answers):
    broken = {
        **REDIS,
        "redis": [{**REDIS["redis"][0], "error": "refused"}],
        "sentinels": [{**REDIS["sentinels"][0], "error": "refused"}],
        "problems": ["Redis on node1 does not answer."],
    }
    for answer in answers.values():
        answer["redis"] = broken
    lines = status.table(status.status(TOPOLOGY, answers))
    assert sum("no answer" in line for line in lines) == 2
    assert lines[-1] == "Redis on node1 does not answer."


def test_the_verdict_on_the_append_only_file_stands_beside_its_server(answers):
    answers["node1"]["aof"] = {"verdict": "ok", "summary": "ok"}
    answers["node2"]["aof"] = {"verdict": "corrupt", "summary": "corrupt base.rdb", "sentence": "base.rdb is damaged."}
    found = status.status(TOPOLOGY, answers)
    assert [row["aof"] for row in found["redis"]] == ["ok", "corrupt base.rdb"]
    assert found["problems"] == ["node2: append-only file: base.rdb is damaged."]
    assert any(line.endswith("corrupt base.rdb") for line in status.table(found))


def test_what_a_sentinel_is_at_stands_in_the_table(answers):
    for answer in answers.values():
        answer["redis"] = {**REDIS, "sentinels": [{**REDIS["sentinels"][0], "quorum": 2, "tilt": True, "failover": True}]}
    assert any(line.endswith("ok (2)  tilt, failover in progress") for line in status.table(status.status(TOPOLOGY, answers)))


def with_vip(**said):
    groups = {"openclaw_balancers": list(NAMES), "openclaw_gateways": []}
    built = build(groups, {name: {"ansible_host": f"192.0.2.1{number}", "vip_address": "192.0.2.10"} for number, name in enumerate(NAMES, 1)})
    return status.status(built, {name: {"units": "active\nactive", "redis": REDIS, **({"vip": said[name]} if name in said else {})} for name in NAMES})


HELD = "98: eth0    inet 192.0.2.10/24 scope global secondary eth0"


def test_one_holder_of_a_virtual_address_is_sound():
    found = with_vip(node1="", node2=HELD)
    assert found["problems"] == []
    assert found["vips"] == [{"datacenter": "main", "address": "192.0.2.10", "prefix": 24, "holders": ["node2"], "silent": []}]
    assert "192.0.2.10       main        node2" in status.table(found)
    assert found["hosts"][0]["units"] == {"haproxy.service": "active", "keepalived.service": "active"}


@pytest.mark.parametrize(
    "said, start, shown",
    [
        ({"node1": HELD, "node2": HELD}, "192.0.2.10: node1 and node2 hold the virtual address at the same time; ", "node1 node2"),
        ({"node1": "", "node2": ""}, "192.0.2.10: no balancer holds the virtual address; ", "nobody"),
    ],
)
def test_two_holders_or_none_are_a_problem(said, start, shown):
    found = with_vip(**said)
    assert len(found["problems"]) == 1 and found["problems"][0].startswith(start)
    assert any(line.startswith("192.0.2.10 ") and line.endswith(shown) for line in status.table(found))


def test_a_silent_balancer_may_hold_the_virtual_address():
    found = with_vip(node1="")
    assert found["problems"] == [] and any(line.endswith("?") for line in status.table(found))


# --- several datacenters

APART = {
    name: {"ansible_host": f"192.0.2.2{number}", "topology_datacenter": name[:-1]} for number, name in enumerate(("main1", "west1", "west2"), 1)
}
GROUPS = {"openclaw_redis": list(APART), "openclaw_gateways": ["main1", "west1"], "openclaw_balancers": ["west1"], "openclaw_dns": ["west2"]}


def standby(**more):
    """What the hosts of ``west`` say of a sound standby; those of ``main`` have a view of their own."""
    service = {"state": "standby", "why": "Standby of main (epoch 1).", "contact": {"seen": "now", "offset": 50, "own": 40}}
    topology, drained_there = build(GROUPS, APART, "west"), {"since": "", "by": "", "reason": "standby"}
    found = {
        "main1": {"redis": REDIS},
        "west1": {
            "units": "\n".join("active" for _unit in status.units_of(topology, "west1")),
            "replicas": {"replicas": [{"id": "west1-1", "healthy": True, "seen": "healthy", "version": "2026.9.6"}]},
            "verdicts": {"replicas": [{"id": "west1-1", "seen": "draining", "verdict": verdict("draining", drained_there, redis="away")}]},
            "balancer": {"servers": [seen("west1-1", word="DRAIN", takes=False)]},
            "redis": {**REDIS, "state": "standby", "primary": None, "sentinels": []},
            "datacenter": {**service, **more},
        },
        "west2": {"units": "\n".join("active" for _unit in status.units_of(topology, "west2")), "datacenter": {**service, **more}},
    }
    return topology, found


def test_hosts_of_several_datacenters_watch_the_others():
    topology, _answers = standby()
    assert status.units_of(topology, "west2") == ["openclaw-datacenter.service", "pdns.service", "redis-sentinel.service", "redis-server.service"]
    assert status.roles_of(topology, "west2") == ["dns", "redis", "sentinel"]


def test_a_standby_is_well_although_nobody_is_served_there():
    topology, answers = standby()
    found = status.status(topology, answers)
    assert found["problems"] == [] and found["primary"] is None
    assert found["datacenter"] == {"name": "west", "state": "standby", "why": "Standby of main (epoch 1).", "behind": 10}
    assert status.table(found)[0] == "DATACENTER west: standby. Standby of main (epoch 1). 10 bytes behind."


def test_a_standby_whose_gateway_does_not_run_is_not_well():
    topology, answers = standby()
    answers["west1"]["replicas"]["replicas"][0].update(healthy=False, seen="no answer")
    assert status.status(topology, answers)["problems"] == ["west1-1: no answer."]


def test_a_fenced_datacenter_is_one_problem_a_host():
    topology, answers = standby(state="fenced", since="then", reason="west takes over.")
    for name in ("west1", "west2"):
        answers[name]["units"] = answers[name]["units"].replace("active", "inactive")
    problems = status.status(topology, answers)["problems"]
    assert problems == [f"{name}: fenced since then: west takes over. dr_failback.yml joins it again." for name in ("west1", "west2")]


def test_hosts_that_do_not_agree_on_what_they_are():
    topology, answers = standby()
    answers["west2"]["datacenter"]["state"] = "active"
    found = status.status(topology, answers)
    assert found["datacenter"]["state"] == "unknown" and "The hosts do not agree" in found["problems"][0]


def test_where_there_is_one_datacenter_there_is_no_word_about_it(answers):
    assert status.status(TOPOLOGY, answers)["datacenter"] is None


# --- channels

WITH_CHANNELS = build(
    {"openclaw_balancers": ["node1"], "openclaw_gateways": list(NAMES), "openclaw_redis": list(NAMES), "openclaw_sentinels": ["node1"]},
    {
        name: {"ansible_host": f"192.0.2.1{number}", "gateway_channels": [{"type": "telegram", "mode": "webhook"}, {"type": "whatsapp"}]}
        for number, name in enumerate(NAMES, 1)
    },
)


def singleton(replica=None, state="elsewhere"):
    return {"holder": "node1-1", "host": "node1", "since": 1795796605.5, "token": 7, "state": state, "replica": replica}


@pytest.fixture
def channels(answers):
    for name in NAMES:
        answers[name]["units"] = "\n".join("active" for _unit in status.units_of(WITH_CHANNELS, name))
        answers[name]["ingress"] = {"status": "ok", "redis": True, "stopping": False, "events": 3, "oldest_seconds": 1.5, "dead": 0}
        answers[name]["owner"] = {"problems": [], "singletons": {"whatsapp/default": singleton("node1-1", "owned") if name == "node1" else singleton()}}
    return answers


def test_what_channels_need_is_among_the_units_and_in_the_table(channels):
    assert {"openclaw-ingress.service", "openclaw-owner.service"} <= set(status.units_of(WITH_CHANNELS, "node2"))
    found = status.status(WITH_CHANNELS, channels)
    assert found["ok"], found["problems"]
    assert found["owners"] == [{"singleton": "whatsapp/default", "replicas": ["node1-1"], "state": "owned", "since": 1795796605.5, "token": 7}]
    text = "\n".join(status.table(found))
    assert "node2    ok     3        1.5 s   0" in text and "whatsapp/default  node1-1  2026-11-27T16:23:25Z  7" in text
    assert "INGRESS" not in "\n".join(status.table(status.status(TOPOLOGY, channels)))


def test_a_host_whose_services_do_not_answer(channels):
    channels["node2"]["ingress"] = channels["node2"]["owner"] = {}
    problems = status.status(WITH_CHANNELS, channels)["problems"]
    assert [one.split(";")[0] for one in problems] == ["node2: the ingress does not answer", "node2: the owners' service does not answer"]


@pytest.mark.parametrize("stopping, word", [(True, "it stops"), (False, "Redis is away")])
def test_an_ingress_that_takes_nothing(channels, stopping, word):
    channels["node1"]["ingress"] |= {"status": "down", "stopping": stopping}
    assert status.status(WITH_CHANNELS, channels)["problems"] == [f"node1: the ingress takes no webhooks ({word})."]


def test_dead_letters_are_for_a_person(channels):
    channels["node1"]["ingress"]["dead"] = channels["node2"]["ingress"]["dead"] = 4
    (problem,) = status.status(WITH_CHANNELS, channels)["problems"]
    assert problem.startswith("4 webhook events are dead letters: openclaw-ingress list --dead")


def test_an_account_that_nobody_has_and_one_that_two_have(channels):
    channels["node1"]["owner"]["singletons"]["whatsapp/default"] = singleton()
    assert status.status(WITH_CHANNELS, channels)["problems"] == ["whatsapp/default: nobody has it; see journalctl -u openclaw-owner."]
    for name in NAMES:
        channels[name]["owner"]["singletons"]["whatsapp/default"] = singleton(f"{name}-1", "owned")
    assert status.status(WITH_CHANNELS, channels)["problems"] == ["whatsapp/default: node1-1 and node2-1 have it; see journalctl -u openclaw-owner."]
    channels["node2"]["owner"] = {"problems": ["Redis is away"], "singletons": {}}
    assert status.status(WITH_CHANNELS, channels)["problems"] == ["node2: owners: Redis is away."]
