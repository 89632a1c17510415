"""Everything Linux: BPF objects and maps, netlink, sysctls, namespaces, probes. The only importer of cffi and pyroute2."""
