# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The ingress of a gateway host: webhooks of channels are stored before they are acknowledged, and delivered until their turn is committed.

``channels`` knows the providers, ``decision`` decides and touches nothing; ``journal`` and ``scripts`` are Redis, ``door`` takes requests,
``replicas`` watches the gateways, ``delivery`` brings events to them, ``service`` holds it all together.
"""
