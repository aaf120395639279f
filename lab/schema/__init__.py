"""The tables of a topology file: each key, its default and its limits. Manual: docs/topology.md."""
