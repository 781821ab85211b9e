"""Some of these tests fork; a fork of a process with torch's thread pool would wait for threads it does not have."""

import torch

torch.set_num_threads(1)
