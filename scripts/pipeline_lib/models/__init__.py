"""Stage 04: from a preset, one dial or explicit numbers to an initialised Hugging Face model directory."""
