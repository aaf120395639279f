"""Frames as a record, of many pieces and with work left to do: copied, summed, cut into segments. All devices of the lab use it."""
