"""Keywords that a call does not know, and those that were meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

# What libraries call one thing; of each row a call knows one name at most.
SYNONYMS = (
    ("learning_rate", "lr", "learnRate", "step_rate", "stepsize", "step_size", "eta"),
    ("decay", "alpha", "rho", "gamma", "beta", "beta2", "beta_2", "b2", "factor"),
    ("rms_regularizer", "eps", "epsilon", "regularizer"),
    ("momentum", "mu", "beta1", "beta_1", "b1"),
    ("weight_decay", "l2", "wd"),
    ("max_gradient_elem", "clipvalue", "clip_value", "max_delta"),
    ("max_gradient_norm", "clipnorm", "clip_norm"),
    ("max_global_norm", "global_clipnorm", "max_norm", "max_grad_norm"),
    ("max_epochs", "epochs", "n_epochs", "num_epochs", "nb_epoch", "nb_epochs"),
    ("max_updates", "max_iter", "maxiter", "n_iter", "max_steps", "num_steps", "iterations"),
    ("batch_size", "batchsize", "minibatch_size", "bs"),
    ("seed", "random_state", "random_seed"),
    ("train", "train_data", "train_set", "train_loader", "data", "dataset"),
    ("valid", "validation_data", "valid_set", "val_data", "eval_set", "test"),
    ("validate_every", "validation_freq", "eval_every"),
    ("patience", "early_stopping", "n_iter_no_change", "early_stopping_rounds"),
    ("min_improvement", "tol", "min_delta"),
    ("restore_best", "restore_best_weights"),
    ("observers", "callbacks", "callback", "hooks", "logger"),
    ("progress", "verbose", "progress_bar", "progressbar", "disp"),
    ("checkpoint", "checkpoint_dir", "save_dir", "ckpt_path"),
    ("resume", "resume_from_checkpoint", "restart"),
    ("updates_per_call", "steps_per_execution"),
)


def _arguments_of(owner: str, names: str) -> dict[str, str]:
    return {name: f"Give it to {owner}: {owner}(..., {name}=...)." for name in names.split()}


# What is said elsewhere than where training is asked for, and how.
ELSEWHERE = {
    **_arguments_of(
        "Trainer",
        "loss params inputs updates monitors monitor_gradients carried monitor_updates mode"
        " devices shard_above",
    ),
    **_arguments_of("Dataset", "name iteration_size axis rng shuffle prefetch"),
    **_arguments_of("Checkpoint", "directory every_updates every_epochs every_seconds keep"),
    **dict.fromkeys(
        ("steps_per_epoch", "train_batches", "valid_batches"),
        "Give the minibatches in an epoch by Dataset(..., iteration_size=...).",
    ),
    "num_workers": "Read ahead by Dataset(..., prefetch=...).",
    "validation_split": "Split the data, and give a part as valid=.",
    "metrics": "Give them to Trainer: Trainer(..., monitors=...).",
    "device": "Choose where to compute by Trainer(..., mode='JAX').",
    "optimizer": "RMSProp is the only one; preset(name) gives another library's form of it.",
}


def refuse_unknown(keywords: Iterable[str], known: Sequence[str], what: str = "keyword") -> None:
    """Raise a TypeError for the first unknown keyword, with the one that was meant.

    Parameters
    ----------
    keywords : iterable of str
        What was given.
    known : sequence of str
        What there is.
    what : str
        What they are; of keywords, the names in other libraries are known too.

    Raises
    ------
    TypeError
        If one is not known.
    """
    for keyword in keywords:
        if keyword not in known:
            raise TypeError(f"Unknown {what} {keyword!r}. {_hint(str(keyword), known, what)}")


def _hint(keyword: str, known: Sequence[str], what: str) -> str:
    synonyms = [name for row in SYNONYMS if keyword in row for name in row if name in known]
    nearest = difflib.get_close_matches(keyword, known, n=1, cutoff=0.5)
    if what == "keyword" and synonyms:
        return f"Did you mean {synonyms[0]!r}?"
    if what == "keyword" and keyword in ELSEWHERE:
        return ELSEWHERE[keyword]
    return f"Did you mean {nearest[0]!r}?" if nearest else f"Known: {', '.join(known)}."
