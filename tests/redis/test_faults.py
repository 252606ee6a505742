"""Every fault, on the cluster and beside it on plain sets, in one run; ``python -m tests.redis table`` makes a table of it."""

import sys

import pytest

from tests.redis.faults import FAULTS
from tests.redis.run import CACHE, compare, table

NAMES = [name for name in FAULTS if name != "none"]
#: Seconds beyond down-after that an election and the clients' search may take on a busy two-core machine; facts: 0.9 to 1.4 alone.
ELECTION = 6


@pytest.fixture(scope="module")
def comparison(cluster):
    result = compare(cluster, NAMES, CACHE / cluster / "faults")
    print(f"\n{table(result)}", file=sys.stderr)
    return result["faults"]


@pytest.mark.smoke
@pytest.mark.parametrize("name", NAMES)
def test_nothing_acknowledged_is_lost_doubled_or_reordered(comparison, name):
    found = comparison[name]["ours"]
    assert found["ok"], {kind: tokens[:5] for kind, tokens in found["violations"].items() if tokens}
    assert found["acknowledged"] >= 100


@pytest.mark.smoke
@pytest.mark.parametrize("name", ["killed", "frozen", "partitioned", "one-sentinel-gone", "switched"])
def test_writes_are_acknowledged_again_soon_after_down_after(comparison, name):
    found = comparison[name]["ours"]
    assert found["gap"] <= found["down_after"] + ELECTION


@pytest.mark.smoke
@pytest.mark.parametrize("name", ["frozen", "partitioned", "switched"])
def test_the_same_fault_costs_a_plain_set_what_it_acknowledged(comparison, name):
    """Else the fault was none, and that the cluster lost nothing would say nothing."""
    assert comparison[name]["plain"]["violations"]["lost"]
