"""Stage 02: repair a text, score it, apply thresholds to the scores, and leave a receipt for every removal.

Order: normalise -> personal_data -> c4 (lines) -> language, document_scores, contamination (columns) -> rules
(thresholds on columns) -> dedup -> receipts. `shard.py` does the part that one document decides for itself, `corpus.py`
the part that needs all of them.
"""
