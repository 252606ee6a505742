# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What Prometheus is told."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge


class Metrics:
    """All metrics, in a registry of their own."""

    def __init__(self):
        self.registry = CollectorRegistry()

        def made(kind, name, text, *labels):
            return kind(f"openclaw_owner_{name}", text, labels, registry=self.registry)

        self.owned = made(Gauge, "owned", "1 while a replica of this host has a singleton.", "singleton", "replica")
        self.held = made(Gauge, "held", "1 while any replica of the cluster has a singleton.", "singleton")
        self.since = made(Gauge, "since_timestamp_seconds", "Since when the replica has it that has it, wherever that is; 0 = none has.", "singleton")
        self.left = made(Gauge, "lease_seconds_left", "Seconds that are left of this host's lease.", "singleton")
        self.changes = made(Counter, "changes", "Times that this host has turned a singleton on or off.", "singleton")
        self.fenced = made(Counter, "fenced", "Gateways that were killed because a singleton was not proven off.", "replica")
        self.failed = made(Counter, "renewals_failed", "Renewals of a lease that were not confirmed.", "singleton")
        self.redis = made(Gauge, "redis_up", "1 while Redis serves.")
