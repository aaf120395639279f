"""The client side of xenstore: requests, watches, transactions; and the XenbusState machine that front and back ends walk."""
