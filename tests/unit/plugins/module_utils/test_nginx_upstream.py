import pytest

from ansible_collections.openclaw.ha.plugins.filter.nginx_upstream import FilterModule
from ansible_collections.openclaw.ha.plugins.module_utils.nginx_upstream import ids, render

REPLICAS = [
    {"id": "node1-1", "address": "192.0.2.1", "port": 18789},
    {"id": "node1-10", "address": "192.0.2.1", "port": 19869},
]


def servers(text):
    return [line.strip() for line in text.splitlines() if line.strip().startswith("server ")]


def test_each_replica_with_the_settings_that_were_asked_for():
    text = render(REPLICAS)
    assert servers(text) == [
        "server 192.0.2.1:18789 max_fails=3 fail_timeout=15s; # node1-1",
        "server 192.0.2.1:19869 max_fails=3 fail_timeout=15s; # node1-10",
    ]
    assert text.index("least_conn;") < text.index("server ") < text.index("keepalive ")
    assert text.startswith("#") and text.endswith("}\n") and "upstream gateways {" in text


def test_a_drained_one_is_down_and_no_other():
    assert [" down;" in line for line in servers(render(REPLICAS, ["node1-1", "node9-1"]))] == [True, False]


@pytest.mark.parametrize(
    "text, found",
    [("", []), ("node1-1\n", ["node1-1"]), ("# by hand\n node1-1 # why\n\nnode1-2", ["node1-1", "node1-2"])],
)
def test_the_file_of_drained_replicas(text, found):
    assert ids(text) == found


def test_the_filter():
    assert FilterModule().filters()["nginx_upstream"](REPLICAS, "node1-1\n") == render(REPLICAS, ["node1-1"])
