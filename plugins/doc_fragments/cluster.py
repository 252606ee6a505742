# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options that name all servers of a Redis cluster."""

from __future__ import annotations


class ModuleDocFragment:
    """C(openclaw.ha.cluster)."""

    DOCUMENTATION = r"""
options:
  redis:
    description: The Redis servers, each with C(host) (a name for messages), C(address) and C(port).
    type: list
    elements: dict
    required: true
  sentinels:
    description: The Sentinels, in the same form.
    type: list
    elements: dict
    required: true
  name:
    description: Name under which the Sentinels watch the primary.
    type: str
    required: true
  quorum:
    description: Number of Sentinels that must agree on a failure; a Sentinel with another number is a disagreement. Without it none is expected.
    type: int
  elsewhere:
    description: Address and port of the Redis servers of other datacenters, which the Sentinels may have met and have no business with.
    type: list
    elements: str
    default: []
  standby:
    description: Whether this datacenter is a standby - its Redis servers follow some in O(elsewhere), and its Sentinels watch nobody.
    type: bool
    default: false
"""
