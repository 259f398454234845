"""Extraction distributed over many tasks: Slurm job arrays and Dask clusters."""
