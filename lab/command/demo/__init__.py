"""The demo: run.py is what happens in which order, hops.py what a frame costs where, page.py the page that is left."""
