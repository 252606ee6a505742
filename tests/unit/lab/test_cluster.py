"""The lab's clusters, without Docker."""

import pytest

from lab import cluster
from lab.shell import LabError


def test_hosts_of_another_checkout_are_left_alone(monkeypatch, tmp_path):
    """They answer, but know other keys and secrets than this one's."""
    one = object.__new__(cluster.Cluster)
    one.name, one.prefix, one.hosts = "default", "openclaw-lab-default", {"node1": "198.18.11.11"}
    asked = []

    def run(*words, **_options):
        asked.append(words[:2])
        return "openclaw-lab-default-node1" if words[1] == "ps" else "a network"

    monkeypatch.setattr(cluster, "run", run)
    monkeypatch.setattr(cluster, "LAB", tmp_path)
    monkeypatch.setattr(one, "_write_inventory", lambda: None, raising=False)
    with pytest.raises(LabError, match="default are those of another checkout: remove them with `python -m lab destroy default`"):
        one.create()
    assert asked == [("docker", "network"), ("docker", "ps")]
