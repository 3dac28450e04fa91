"""The names of what one call of ``iterate`` may be asked for."""

# The keywords of ``iterate`` that are no hyperparameters.
OPTIONS = (
    *("train", "valid", "max_updates", "max_epochs", "validate_every", "patience"),
    *(
        "min_improvement",
        "monitor",
        "higher_is_better",
        "restore_best",
        "batch_size",
        "seed",
        "on_divergence",
    ),
    *("checkpoint", "run_directory", "resume", "save_batch"),
    *("progress", "observers", "updates_per_call"),
)
