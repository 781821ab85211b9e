"""Stage 11: what each model of the run can do, with the uncertainty of every number.

Reading order: `config.task_files` (what is asked), `items` (of whom), `language_model` (how text becomes probabilities,
on top of `scoring` and `generation`), `harness` (lm-eval asks the questions), `task_checks` (each is tried first),
`statistics` (what the answers prove), `results` (results.json and samples.parquet) and `training_copies` (which items
stand in the training text).
"""
