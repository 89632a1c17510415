"""Byte protocols, pure: bytes in, values out, and back. No I/O here."""
