"""OLMo-core's best-fit packer, run by packing_rules.py under a Python that has ai2-olmo-core.

    python olmo_packer.py INDICES.npy CONTEXT

INDICES: first and last token + 1 of each document, uint64 [documents, 2]. For every line that it reads it packs all
documents anew and answers with the number of sequences.
"""

import gc
import sys

import numpy as np
from olmo_core.data.utils import InstancePacker

indices, context = np.load(sys.argv[1]), int(sys.argv[2])
gc.disable()  # as for everybody whose time is taken
print("ready", flush=True)
for _ in sys.stdin:
    print(len(InstancePacker(context).pack_documents(indices)[0]), flush=True)
