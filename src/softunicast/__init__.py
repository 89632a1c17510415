"""softunicast: many Linux servers share few public IPv4 addresses, by slices of source ports."""

__version__ = "0.1.0"
