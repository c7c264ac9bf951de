"""Reports: one self-contained HTML page (and PNGs) of a live database or a simulation."""
