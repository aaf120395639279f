"""Looking at topologies: the picture of one, what counters say of each hop, and what happens to it. No data path is disturbed."""
