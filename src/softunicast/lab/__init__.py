"""Topologies in network namespaces as programs; for people, tests and benchmarks alike."""
