"""Units of a stage done elsewhere: by array jobs of Slurm or by a Ray cluster, as datatrove executors.

    numbered script (lock, journal, ledger, manifest)        tasks on other machines
      batch.py   what is to be done, pickled  ------------->   deal out the units, do them one by one
      gather.py  waits for the results, in order  <---------   one JSON file per unit on the shared disk
      on_slurm.py, on_ray.py   start the tasks, and tell which of them may still be at work

A unit is a function of its job alone, so who does it, how many do, and who was killed cannot show in the outputs.
"""

from .gather import forget_results, prepare, results_of, works_elsewhere

__all__ = ["forget_results", "prepare", "results_of", "works_elsewhere"]
