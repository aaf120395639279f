"""One file a path: the guest's half of an I/O model behind the device interface. Found by name."""
