"""Help at the command line: what a word can be completed to, and examples of each command."""
