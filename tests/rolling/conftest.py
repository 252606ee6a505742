"""The cluster that is changed is the one that tests/traffic loads."""

import pytest

from tests.traffic import conftest as traffic

cluster = traffic.cluster
balanced_by = traffic.balanced_by


@pytest.fixture(scope="session")
def evidence_directory():
    return traffic.ROOT / ".cache" / "rolling" / traffic.NAME
