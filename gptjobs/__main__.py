"""`python -m gptjobs`: the same as `gptjobs`."""

from gptjobs.cli import main

if __name__ == "__main__":
    main()
