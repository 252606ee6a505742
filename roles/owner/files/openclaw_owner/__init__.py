# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The owner of a gateway host: of all replicas of the cluster one has each singleton, a thing that only one process may do.

``decision`` decides and touches nothing; ``lease`` and ``scripts`` are Redis, ``units`` are the gateways' processes, ``files`` is what turns a singleton on
and off in a gateway, ``service`` holds it all together. The way to Redis is that of ``openclaw_ingress``, which must be importable.
"""
