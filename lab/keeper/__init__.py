"""The keeper, a topology's init (keeper.py), what guests print (output.py), and their process (``python -m lab.keeper``)."""

from lab.keeper.child import describe_exit
from lab.keeper.keeper import TITLE, Keeper

__all__ = ["TITLE", "Keeper", "describe_exit"]
