# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What Prometheus is told of one replica, collected when it asks."""

from __future__ import annotations

from prometheus_client.core import GaugeMetricFamily

from .verdict import STATUSES


class ReplicaCollector:
    """Metrics of one replica from what the service knows at the moment."""

    def __init__(self, service, replica):
        self._service, self._replica = service, replica

    def collect(self):
        service, replica = self._service, self._replica
        gateway, verdict, drain = service.verdict(replica)

        def gauge(name, text, *samples):
            family = GaugeMetricFamily(f"openclaw_agent_{name}", text, labels=["replica", *(samples[0][0] if samples else {})])
            for labels, value in samples:
                family.add_metric([replica["id"], *labels.values()], value)
            return family

        who = {"host": service.config["host"], "zone": replica["zone"], "version": gateway.version}
        yield gauge("info", "Which replica this is.", (who, 1))
        yield gauge("status", "The verdict: 1 for the status that holds.", *(({"status": one}, one == verdict.status) for one in STATUSES))
        known = [({"check": name}, ok) for name, ok in verdict.checks.items() if ok is not None]
        yield gauge("check", "1 when a check finds nothing wrong; checks without anything to look at are left out.", *known)
        yield gauge("drained", "1 while the drain switch is on.", ({}, drain is not None))
        yield gauge("gateway_silent_seconds", "Seconds since the gateway's last good answer.", ({}, gateway.silent))
        yield gauge("gateway_uptime_seconds", "What the gateway said of its uptime in it.", ({}, gateway.uptime))
        yield gauge("unit_restarts", "Restarts of the gateway's unit in the last five minutes.", ({}, service.unit_restarts.get(replica["id"], 0)))
        spaces = [(path, space) for path, space in service.spaces.items() if not isinstance(space, str)]
        yield gauge("disk_free_ratio", "Free share of the file system of a path.", *(({"path": path}, space.free) for path, space in spaces))
        inodes = [({"path": path}, space.inodes) for path, space in spaces if space.inodes is not None]
        yield gauge("disk_inodes_free_ratio", "Free share of the inodes of that file system.", *inodes)
        days = [({"certificate": name}, left) for name, left in service.certificate_days.items() if not isinstance(left, str)]
        yield gauge("certificate_days", "Days until a certificate ends.", *days)
        if service.clock is not None:
            yield gauge("clock_offset_seconds", "Seconds by which the clock is still to be corrected.", ({}, service.clock.offset))
        lasted = [({"check": name}, seconds) for name, seconds in service.lasted(replica).items()]
        yield gauge("check_duration_seconds", "How long the latest run of a background check took.", *lasted)
