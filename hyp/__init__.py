"""The hypervisor: memory, rings, grants, event channels, IOMMU tables, control protocol. Imports nothing of ours."""
