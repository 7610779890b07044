"""`saelab train`: train an SAE on a store or on a live model, into a run folder."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from saelab.core.run import FORMAT, Run
from saelab.recipes.train_options import check_parts, dumped, parsed, saved, typed
from saelab.train.job import Job, resume_run


def train_from_options(parser: ArgumentParser, options: Namespace) -> None:
    """What `saelab train` does with its options."""
    if options.format > FORMAT:
        raise ValueError(f"the config has format {options.format}, newer than {FORMAT}; update saelab")
    if options.resume:
        run = Run.open(options.resume)
        resume_run(run, parsed(run.config(), f"{run.config_file} is not the config of a training run"))
        return
    if not options.out:
        raise ValueError("--out is missing: the folder for the new run (or --resume RUN to go on with one)")
    if options.store:
        options.store = str(Path(options.store).resolve())  # so that a resume finds it from anywhere
    settings = dumped(parser, options)
    check_parts(options.as_dict())  # the dump leaves out what is null
    job = Job(typed(parser.instantiate(options)))
    job.train(job.new_run(options.out, saved(settings)))
