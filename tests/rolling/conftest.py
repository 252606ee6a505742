"""The cluster that is changed is the one that tests/traffic loads."""

import pytest

from tests.traffic.conftest import NAME, ROOT, cluster  # noqa: F401


@pytest.fixture(scope="session")
def evidence_directory():
    return ROOT / ".cache" / "rolling" / NAME
