"""The keeper, a topology's init (keeper.py), births and reaping (births.py), what guests print (output.py); their process is
``python -m lab.keeper``.
"""

from lab.keeper.child import describe_exit
from lab.keeper.keeper import TITLE, Keeper

__all__ = ["TITLE", "Keeper", "describe_exit"]
