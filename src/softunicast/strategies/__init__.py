"""Ways in which packets and sockets of one server can share an address and its slice, behind one interface."""
