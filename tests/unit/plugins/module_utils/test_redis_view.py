import pytest

from ansible_collections.openclaw.ha.plugins.module_utils.redis_view import agree, differences, parse_memory


def node(number, role="slave", follows=1, **more):
    return {
        "host": f"node{number}",
        "address": f"192.0.2.1{number}",
        "port": 6379,
        "role": role,
        "primary": None if role == "master" else f"192.0.2.1{follows}:6379",
        "link": True,
        "offset": 100,
        "connected": 2 if role == "master" else 0,
        **more,
    }


def sentinel(number, names=1, **more):
    return {
        "host": f"node{number}",
        "address": f"192.0.2.1{number}",
        "port": 26379,
        "primary": f"192.0.2.1{names}:6379" if names else None,
        "replicas": 2,
        "quorum_ok": True,
        "tilt": False,
        "failover": False,
        **more,
    }


def silent(of):
    return {**{key: of[key] for key in ("host", "address", "port")}, "error": "Connection refused"}


NODES = [node(1, "master"), node(2), node(3)]
SENTINELS = [sentinel(1), sentinel(2), sentinel(3)]


def test_all_agree():
    assert agree(NODES, SENTINELS) == {"state": "agreed", "primary": "192.0.2.11:6379", "problems": []}


def test_the_primary_is_the_elected_one_not_the_first():
    nodes = [node(1, follows=3), node(2, follows=3), node(3, "master")]
    view = agree(nodes, [sentinel(number, names=3) for number in (1, 2, 3)])
    assert (view["state"], view["primary"], view["problems"]) == ("agreed", "192.0.2.13:6379", [])


def test_nothing_there():
    assert agree([silent(one) for one in NODES], [silent(one) for one in SENTINELS], unanswered_ok=True) == {
        "state": "absent",
        "primary": None,
        "problems": [],
    }


def test_two_primaries_are_refused_and_both_named():
    view = agree([node(1, "master"), node(2, "master"), node(3)], SENTINELS)
    assert view["state"] == "disagreed" and view["primary"] is None
    (problem,) = view["problems"]
    assert "node1 (192.0.2.11:6379, 2 replicas)" in problem and "node2 (192.0.2.12:6379, 2 replicas)" in problem


def test_a_minority_of_sentinels_decides_nothing():
    view = agree(NODES, [sentinel(1), sentinel(2, names=2), silent(sentinel(3))])
    assert view["state"] == "disagreed"
    assert any("majority of the 3 Sentinels" in problem for problem in view["problems"])


def test_sentinels_that_name_a_replica_are_not_believed():
    view = agree(NODES, [sentinel(number, names=2) for number in (1, 2, 3)])
    assert view["state"] == "disagreed"
    assert "192.0.2.12:6379" in view["problems"][0]


def test_without_any_sentinel_state_a_single_primary_speaks_for_itself():
    view = agree(NODES, [sentinel(number, names=None) for number in (1, 2, 3)])
    assert (view["state"], view["primary"]) == ("agreed", "192.0.2.11:6379")
    assert len(view["problems"]) == 3


def test_without_a_primary_nothing_is_agreed():
    view = agree([node(1), node(2)], [])
    assert view["state"] == "disagreed"
    assert "the replicas follow 192.0.2.11:6379" in view["problems"][0]


def test_primary_down_but_named_by_the_sentinels_while_replicas_live():
    view = agree([silent(NODES[0]), node(2), node(3)], SENTINELS)
    assert view["state"] == "disagreed"


@pytest.mark.parametrize(
    "nodes, sentinels, words",
    [
        ([NODES[0], NODES[1], silent(NODES[2])], SENTINELS, "Redis on node3 (192.0.2.13:6379) does not answer: Connection refused."),
        (NODES, [*SENTINELS[:2], silent(SENTINELS[2])], "Sentinel on node3 (192.0.2.13:26379) does not answer: Connection refused."),
        ([NODES[0], NODES[1], node(3, link=False)], SENTINELS, "Redis on node3 (192.0.2.13:6379) has lost its link"),
        ([NODES[0], NODES[1], node(3, follows=2)], SENTINELS, "node3 (192.0.2.13:6379) follows 192.0.2.12:6379, not the primary"),
        (NODES, [*SENTINELS[:2], sentinel(3, names=2)], "Sentinel on node3 (192.0.2.13:26379) names 192.0.2.12:6379"),
        (NODES, [*SENTINELS[:2], sentinel(3, names=None)], "Sentinel on node3 (192.0.2.13:26379) names nobody"),
        (NODES, [*SENTINELS[:2], sentinel(3, quorum_ok=False)], "node3 (192.0.2.13:26379) does not see enough Sentinels"),
        (NODES, [*SENTINELS[:2], sentinel(3, replicas=1)], "node3 (192.0.2.13:26379) knows 1 replicas of the 2 that there are"),
        (NODES, [*SENTINELS[:2], sentinel(3, tilt=True)], "node3 (192.0.2.13:26379) is in tilt mode"),
        (NODES, [*SENTINELS[:2], sentinel(3, failover=True)], "node3 (192.0.2.13:26379) has a failover in progress"),
    ],
)
def test_each_fault_is_one_sentence_that_names_the_node(nodes, sentinels, words):
    view = agree(nodes, sentinels)
    assert (view["state"], view["primary"]) == ("agreed", "192.0.2.11:6379")
    (problem,) = view["problems"]
    assert words in problem


@pytest.mark.parametrize(
    "text, size", [("256mb", 268435456), ("1gb", 1073741824), ("1k", 1000), ("1kb", 1024), ("12", 12), (12, 12), ("64MB", 67108864)]
)
def test_memory_sizes_as_redis_reads_them(text, size):
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "lots", "1.5gb", "gb", "10tb", "-1mb"])
def test_what_is_no_memory_size(text):
    with pytest.raises(ValueError, match="is not a memory size"):
        parse_memory(text)


def test_differences_compare_what_redis_means():
    found = {"maxmemory": "268435456", "save": "900 1 300 10", "appendonly": "yes", "bind": "a b"}
    assert not differences({"maxmemory": "256mb", "save": "900 1  300 10", "appendonly": "yes", "bind": "a b"}, found)
    assert differences({"maxmemory": "128mb", "dir": "/x"}, found) == {"maxmemory": ("268435456", "128mb"), "dir": (None, "/x")}
