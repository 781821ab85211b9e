"""Stage 05: a plain PyTorch training loop that can be killed at any instant; start reading at loop.py."""
