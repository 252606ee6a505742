"""The cluster whose channels are tested: that of the Molecule scenario, or $CLUSTER."""

import os

import pytest

NAME = os.environ.get("MOLECULE_SCENARIO_NAME") or os.environ.get("CLUSTER") or "channels"


@pytest.fixture(scope="session")
def cluster():
    from tests.history.cluster import Cluster

    return Cluster.of_lab(NAME)


@pytest.fixture
def webhook(cluster):
    """The bot whose updates every replica may get. What an earlier test left in the journal is over."""
    from tests.channels import telegram

    return emptied(cluster, telegram.Bot(cluster, telegram.WEBHOOK))


@pytest.fixture
def polling(cluster):
    """The bot that one replica at a time may ask for updates."""
    from tests.channels import telegram

    return telegram.Bot(cluster, telegram.POLLING).reset()


def emptied(cluster, bot):
    from lab.shell import wait_for
    from tests.channels import telegram

    wait_for("an empty journal", lambda: not telegram.waiting(cluster), 60)
    if old := [one["id"] for one in telegram.dead(cluster)]:
        telegram.ingress(cluster, "drop", *old)
    return bot.reset()
