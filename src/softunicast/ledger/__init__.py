"""The book of blocks, addresses, servers and leases. One interface (core.ledger), several backends."""
