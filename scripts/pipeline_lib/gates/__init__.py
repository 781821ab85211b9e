"""Stage 12: pass or fail, from results.json and a gate file. Loads neither torch nor transformers nor lm-eval."""
