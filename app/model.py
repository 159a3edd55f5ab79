"""What the core speaks of, as frozen data: no I/O, no wire names, and no field that could hold a private key."""
