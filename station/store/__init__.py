"""What the station remembers: one SQLite database, in which everything acknowledged stays.

Units, visits, journal, certificates, escrows, outbox, work orders, audit trail. Secrets come in only sealed or wrapped;
devices, tokens and networks not at all. `Store` is the door.
"""

from station.store.orders import WorkOrder
from station.store.outbox import ARCHIVE_SINK, Depth
from station.store.store import Store

__all__ = ["ARCHIVE_SINK", "Depth", "Store", "WorkOrder"]
