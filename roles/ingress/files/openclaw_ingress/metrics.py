# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What Prometheus is told. Counters are of this process; what the journal holds is the same from every ingress."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600)


class Metrics:
    """All metrics, in a registry of their own."""

    def __init__(self):
        self.registry = CollectorRegistry()

        def made(kind, name, text, *labels, **options):
            return kind(f"openclaw_ingress_{name}", text, labels, registry=self.registry, **options)

        self.accepted = made(Counter, "accepted", "Events that were stored and acknowledged.", "account")
        self.duplicates = made(Counter, "duplicates", "Repetitions of an event that was stored already, acknowledged.", "account")
        self.refused = made(Counter, "refused", "Requests that were not acknowledged.", "account", "reason")
        self.delivered = made(Counter, "delivered", "Deliveries that a replica took.", "account")
        self.redelivered = made(Counter, "redelivered", "Those of events that a replica had taken before and then lost.", "account")
        self.failed = made(Counter, "delivery_failures", "Deliveries that no replica took.", "account", "replica")
        self.committed = made(Counter, "committed", "Events whose turn is committed.", "account")
        self.no_turn = made(Counter, "no_turn", "Events that were delivered and began no turn.", "account")
        self.dead = made(Counter, "dead", "Events that became dead letters.", "account", "reason")
        self.seconds = made(Histogram, "commit_seconds", "Seconds from acceptance to commit.", "account", buckets=_SECONDS)
        self.depth = made(Gauge, "queue_events", "Events that wait or are under way.")
        self.bytes = made(Gauge, "queue_bytes", "Bytes of these.")
        self.conversations = made(Gauge, "queue_conversations", "Conversations of these.")
        self.oldest = made(Gauge, "oldest_seconds", "Age of the oldest of these.")
        self.letters = made(Gauge, "dead_letters", "Dead letters that are kept.")
        self.letter_bytes = made(Gauge, "dead_letter_bytes", "Bytes of these.")
        self.redis = made(Gauge, "redis_up", "1 while Redis serves.")
        self.replicas = made(Gauge, "replica_usable", "1 while a replica gets events.", "replica")

    def size(self, size):
        """Take over a :class:`.journal.Size`."""
        self.depth.set(size.events)
        self.bytes.set(size.bytes)
        self.conversations.set(size.conversations)
        self.oldest.set(size.oldest)
        self.letters.set(size.dead)
        self.letter_bytes.set(size.dead_bytes)
