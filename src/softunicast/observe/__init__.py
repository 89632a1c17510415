"""Logs, counters and history for people: what the operator sees."""
