"""The agent's package is installed by its role, not by pip: make it importable, and start it as a process."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3] / "roles/agent/files"))

from agent_rig import Agent, Gateway


@pytest.fixture
def agent(tmp_path):
    """``agent(count, **settings)`` starts a service with that many gateways; all end with the test."""
    started = []

    def make(count=1, **settings):
        started.append(Agent(tmp_path, [Gateway(f"r{number}") for number in range(1, count + 1)], settings))
        return started[-1].start()

    yield make
    for one in started:
        one.stop()
        for gateway in one.gateways:
            gateway.stop()
