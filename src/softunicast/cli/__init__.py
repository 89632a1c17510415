"""The command line: one file per noun or verb. Nouns look, verbs change."""
