"""The cluster that is changed is the one that tests/traffic loads."""

import pytest

from tests.traffic import conftest as traffic

cluster = traffic.cluster
#: For one test: the others are for the cluster as it is.
balanced_by = pytest.fixture(traffic.balanced)


@pytest.fixture(scope="session")
def evidence_directory():
    return traffic.ROOT / ".cache" / "rolling" / traffic.NAME
