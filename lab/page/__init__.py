"""What pages are made of, whoever serves or writes them: HTML as a tree, the drawing of a topology, its style."""
