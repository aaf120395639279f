"""The toolstack: what xl and libxl do in Dom0."""
