"""The Python that runs the lab, and the packages in it. Standard library alone: it runs before they are there."""
