"""Some of these tests fork; a forked process that inherits torch's thread pool would wait for threads it does not have."""

import torch

torch.set_num_threads(1)
