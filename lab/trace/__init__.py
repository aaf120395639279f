"""Looking at single frames on their way: trace rings (hyp/abi/trace.py), what they tell, as a trace, a story, or a capture."""
