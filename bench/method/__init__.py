"""How is measured: slices in turns, the machine's probe, contenders, claims; the choices and the progress of a run."""
