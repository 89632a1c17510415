"""Topologies in network namespaces as programs; for people, tests and benchmarks alike.

topology.py pair.py catalogue.py         what labs are made of: data, and the commands it becomes
build.py state.py status.py              making, recording, removing and looking at a lab
processes.py agents.py                   what runs in its nodes
internet.py pattern.py peers.py          the far end: what it serves, and who came
traffic.py download.py hold.py forge.py  what clients do
demo.py verdict.py                       the main job, shown and judged
"""
