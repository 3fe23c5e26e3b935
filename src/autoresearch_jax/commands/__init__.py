"""What the verbs of the command line do, and the processes that run beside a loop."""
