"""Names shared by the harness and the programs that it starts: files, exit codes, variables."""

# The harness's file in the folder of a run: as long as it exists, `begin` does not return.
HELD = "held"  # empty; the training before is still being scored
# The files that a training writes into the folder of its run, in this order.
EXPORTED = "exported.bin"  # before its clock starts: the model as a function
STOPPED = "stopped"  # empty; marks the end of its clock
PARAMS = "params"  # a folder: the parameters
SUMMARY = "summary.json"  # what the training reports
NATS = "nats.npy"  # what the scorer adds: the nats of each scored target, float16 [N, T]

# Exit codes of the scorer and the sampler.
REFUSED = 3  # the files of a training break a rule
BROKEN = 4  # the data or the machine is at fault
# Its rules that a model breaks whose predictions depend on what they must not depend on.
LEAKS = OTHER_ROWS, TARGETS, LATER_TOKENS = "other-rows", "its-targets", "later-tokens"
TOO_FEW_DEVICES = "too-few-devices"  # its rule that a model breaks which they cannot hold
GO = b"go\n"  # to an early scorer: the training has ended

# Variable: seconds of start-up that cost a training none of its budget; not set: all.
FREE_STARTUP = "AUTORESEARCH_FREE_STARTUP_SECONDS"
MEMORY_LIMIT = "AUTORESEARCH_MAX_MEMORY_GB"  # variable: GiB of a device that a training may use
