"""What a run leaves: results.json, the page with its plots, the terminal's tables, the comparison of two runs."""
