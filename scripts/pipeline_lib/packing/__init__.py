"""Stage 03: a tokenizer, the packed cache of compressed token chunks, packing plans, and the reader of all three."""
