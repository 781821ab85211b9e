"""What the pretraining benchmarks share: one run to compare on, our stage and the peers as processes of their own."""
