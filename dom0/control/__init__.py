"""What the control plane does for a connected vif: its control ring, and the pages that it maps."""
