"""Pure part: prefixes, pools, leases, plans, configuration. No I/O, clock or randomness; `now` is passed in."""
