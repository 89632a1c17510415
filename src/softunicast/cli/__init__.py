"""The command line: one file per noun. Nouns look, verbs change."""
