"""Commands as jobs of a cluster: SLURM and HTCondor. Imports no torch: it runs on login nodes, and must be quick there.

A job is a ``fluvial`` command that may be given any number of times and goes on where it was (see
:mod:`fluvial.launch.job`); so whatever ends a job, its time limit or a more urgent one, it is put back into the queue
until the command is done.
"""
