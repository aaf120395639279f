"""Traces: what a loop does with frames, told to whoever looks (hyp/abi/trace.py has the layout, lab/trace/ the looking)."""
