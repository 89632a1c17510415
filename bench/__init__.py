"""Benchmarks: one file per question, each with its peers, measured in one run.

Run from the top of the repository: `make bench`, or `python -m bench QUESTION`. Everything happens in network
namespaces with unique names that are removed at the end. Results are ratios to a peer measured in the same run;
absolute numbers belong to the machine that the JSON in bench/results names. Nothing in src/ imports this.
"""
