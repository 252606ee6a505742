"""A backup and its restore on a running lab cluster: the Molecule scenario's, or $CLUSTER's."""

from tests.redis.conftest import cluster, servers

__all__ = ["cluster", "servers"]
