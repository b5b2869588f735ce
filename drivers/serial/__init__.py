"""Serial ports as channels of bytes. No protocol comes in."""
