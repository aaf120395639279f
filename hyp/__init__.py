"""What all stand on: layouts, memory, rings, grants, event channels, IOMMU tables, control protocol. Imports nothing of ours."""

import os

# A process with a second thread cannot enter a user namespace, and OpenBLAS starts some when numpy is imported.
os.environ["OPENBLAS_NUM_THREADS"] = "1"
