"""An extraction spread over many tasks: Slurm arrays and Dask."""
