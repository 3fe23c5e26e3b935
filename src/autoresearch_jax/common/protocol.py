"""What the harness and the programs that it starts agree on: files, exit codes, variables."""

# What a training leaves in the folder of its run, in this order.
EXPORTED = "exported.bin"  # before its clock starts: the model as a function
STOPPED = "stopped"  # empty: its clock has stopped
PARAMS = "params"  # a folder: the parameters
SUMMARY = "summary.json"  # what it says of itself

# Exit codes of the scorer and the sampler.
REFUSED = 3  # what a training left breaks a rule
BROKEN = 4  # the data or the machine is at fault
GO = b"go\n"  # to a scorer that was started ahead: the training has ended

MEMORY_LIMIT = "AUTORESEARCH_MAX_MEMORY_GB"  # variable: GiB of a device that a training may use
