"""Whether an endorsement key may be believed: makers' certificates, revocation lists, lists of keys, and the verdict.

Everything here runs in the station's process: the worker, which talks to the device, only brings what the device says.
No device is spoken to and nothing is decided about a unit; the judge gives a verdict, the visit acts on it.
"""
