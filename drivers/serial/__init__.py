"""Serial ports as channels of bytes: UARTs, USB bridges, USB CDC and pseudo-terminals, each for one user at a time.

No protocol comes in, and no discovery: which port to open, the sighting says.
"""
