# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent of a gateway host: one verdict for each replica, and the switch that drains it.

``verdict`` and ``checks`` decide and touch nothing; ``probes`` looks, ``drain`` keeps the switch, ``service`` answers.
"""
