"""The keeper, a topology's init (keeper.py), what guests print (output.py), and their process (``python -m lab.keeper``)."""

from lab.keeper.keeper import TITLE, Keeper, describe_exit

__all__ = ["TITLE", "Keeper", "describe_exit"]
