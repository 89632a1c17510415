"""Everything Linux: BPF, netlink, sysctls, namespaces, probes. The only importer of cffi and pyroute2."""
