"""The node daemon: takes leases, turns ledger state into kernel state, answers the API."""
