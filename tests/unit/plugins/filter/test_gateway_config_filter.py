from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError

from ansible_collections.openclaw.ha.plugins.filter.gateway_config import FilterModule
from ansible_collections.openclaw.ha.plugins.module_utils import topology

PROVIDERS = [{"name": "cloud", "type": "openai-compatible", "endpoint": "http://x/v1", "model": "m", "api_key": "k"}]
PATHS = ("skills", "plugin", "config", "home", "spool", "state", "workspace", "release", "node_bin", "tls", "peers")
OPTIONS = {
    "providers": PROVIDERS,
    "tools_deny": [],
    "turn_timeout": 120,
    "conversation_ttl": 60,
    **{name: f"/{name}" for name in PATHS},
}
FILTERS = FilterModule().filters()


@pytest.fixture
def cluster():
    groups = {"openclaw_gateways": ["node1"], "openclaw_redis": ["node1"], "openclaw_balancers": ["node1"]}
    return topology.build(groups, {"node1": {"topology_address": "192.0.2.11"}})


def test_documents_of_a_replica(cluster):
    made = FILTERS["gateway_config"](cluster["replicas"][0], cluster, OPTIONS)
    assert made["config"]["gateway"]["customBindHost"] == "192.0.2.11"
    assert made["settings"] == {"retry": {"provider": {"maxRetries": 2}}}
    assert made["environment"]["OPENCLAW_HA_REPLICA"] == "node1-1"


def test_a_wrong_provider_is_an_error_for_people(cluster):
    with pytest.raises(AnsibleFilterError, match="gateway_providers is empty"):
        FILTERS["gateway_config"](cluster["replicas"][0], cluster, {**OPTIONS, "providers": []})


def test_secrets():
    text = FILTERS["gateway_secrets"](PROVIDERS, "t")
    assert 'OPENCLAW_GATEWAY_TOKEN_HA="t"\n' in text and 'OPENCLAW_PROVIDER_KEY_CLOUD="k"\n' in text


def test_a_secret_that_cannot_be_written_is_an_error():
    with pytest.raises(AnsibleFilterError, match="OPENCLAW_GATEWAY_TOKEN_HA holds a line break"):
        FILTERS["gateway_secrets"](PROVIDERS, "t\n")
