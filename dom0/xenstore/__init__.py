"""xenstored: the tree, the store upon it, the server. A process of its own, as in Xen."""
