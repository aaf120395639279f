"""A topology's life and the public Python API: schema, plan, keeper, fork server, run folder, owner's handle. Nothing compiled."""
