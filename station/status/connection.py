"""One client of the status server: its socket, its exchange of requests and answers, and what it waits for."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field

from station.status.http import Exchange
from station.wire import PeerCredentials


@dataclass(slots=True, eq=False)
class Client:
    """One connection, touched by the loop's thread only."""

    socket: socket.socket
    since: float
    """When it last moved on: octets read or taken, a request handed on, an answer ready."""
    exchange: Exchange = field(default_factory=Exchange)
    working: bool = False
    """Its request, or its stream's next lines, are with the workers."""
    seq: int = 0
    """Of a stream: the last event sent."""
    more: bool = False
    """Of a stream: there may be events behind `seq`."""
    turn: int = 0
    """Counts what was handed to the workers, so that a late result is known as such."""
    closed: bool = False

    def peer(self) -> PeerCredentials | None:
        """Who is on the other side, None where the kernel doesn't say."""
        try:
            return PeerCredentials.of(self.socket)
        except OSError:
            return None

    @property
    def idle(self) -> bool:
        return not (self.working or self.exchange.out or self.exchange.begun or self.exchange.streaming)
