"""gptjobs: a job queue for GPT-2 training runs, whose workers know what a training run is."""

__version__ = "0.1.0"
