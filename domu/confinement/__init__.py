"""Confinement of a guest's process, and of the programs in it: what the kernel takes away before anything of the guest's runs."""
