"""One module per primitive: checks, outputs in the caller's library, the call into the core."""
