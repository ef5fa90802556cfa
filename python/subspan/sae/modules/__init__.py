"""The modules of torch that are trained: one for each architecture, over one sparse core."""
