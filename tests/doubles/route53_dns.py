"""Stands for the name servers of Amazon Route 53, which cannot run here: answers over real DNS with what a stand-in of its API (moto) holds.

Where the real ones choose by chance, this one goes round: of 100 answers each weighted record set gives exactly as many as its weight says.
"""

from __future__ import annotations

import socketserver
import threading

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset


class Route53Dns(socketserver.ThreadingUDPServer):
    """One server of one hosted zone on loopback; ``frozen`` makes it answer with what it had when it was set, as before a change arrives."""

    daemon_threads = True

    def __init__(self, client, zone_id, port):
        self.client, self.zone_id, self.asked, self.frozen, self.lock = client, zone_id, 0, None, threading.Lock()
        super().__init__(("127.0.0.1", port), _Handler)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def sets(self):
        return self.frozen if self.frozen is not None else self.client.list_resource_record_sets(HostedZoneId=self.zone_id)["ResourceRecordSets"]

    def answer(self, question):
        with self.lock:
            name, kind = question.name.to_text(), dns.rdatatype.to_text(question.rdtype)
            found = [one for one in self.sets() if one["Name"] == name and one["Type"] == kind]
            weighted = [one for one in found if "Weight" in one for _turn in range(one["Weight"])]
            if weighted:
                found = [weighted[self.asked % len(weighted)]]
                self.asked += 1
            return [dns.rrset.from_text(name, one["TTL"], "IN", kind, *[record["Value"] for record in one["ResourceRecords"]]) for one in found[:1]]


class _Handler(socketserver.BaseRequestHandler):
    def handle(self):
        data, connection = self.request
        query = dns.message.from_wire(data)
        response = dns.message.make_response(query)
        response.flags |= dns.flags.AA
        response.answer = self.server.answer(query.question[0])
        connection.sendto(response.to_wire(), self.client_address)
